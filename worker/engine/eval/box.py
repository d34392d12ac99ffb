"""A process that judges: cases in as JSON lines, judgements out, and nothing else to be had here.

``python -m worker.engine.eval.box``. It has no inputs of the job, writes no file, holds a bounded
memory and is ended by whoever asked (worker.engine.eval.scoring) when an answer is late.
"""

import contextlib
import resource
import sys

from worker.engine.eval.judge import Case, Judgement, judge

#: Bytes of address space.
MAX_MEMORY = 2 << 30


def confine() -> None:
    """Take from this process what it does not need: files to write, memory, a core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # macOS bounds no address space; there SQLite's own heap limit and the deadline are the walls.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def main() -> None:
    confine()
    for line in sys.stdin:
        try:
            found = judge(Case.model_validate_json(line))
        except Exception as error:  # text that nobody has read finds a library's every corner
            found = Judgement(score=0, note=f"judging it failed: {type(error).__name__}")
        sys.stdout.write(found.model_dump_json() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
