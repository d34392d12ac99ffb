"""The child process: one EngineTask on stdin, events out, one job done.

Exit status: 0 succeeded or cancelled, 1 failed (an ErrorEvent says why), 3 the runner went away.
"""

import importlib
import logging
import os
import sys
import traceback
from typing import Protocol, cast

from espalier.errors import InvalidInput
from espalier.messages import EngineTask
from espalier.states import Kind, Reason
from worker.engine.report import Cancelled, Fault, Job, Orders, Reporter

log = logging.getLogger("engine")

#: Read by the libraries when they are imported. Inputs are local directories, so a library that
#: reaches for the network is wrong; progress bars and colours make a log unreadable.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "NO_COLOR": "1",
    "TQDM_DISABLE": "1",
}

#: What MLX says when memory ends: Metal's allocator, a command buffer, the CPU's allocator.
_OUT_OF_MEMORY = (
    "insufficient memory",
    "outofmemory",
    "out of memory",
    "[malloc]",
    "[metal::malloc]",
    "unable to allocate",
    "bad_alloc",
    "resource limit (",
)


class _Engine(Protocol):
    def run(self, job: Job) -> None: ...


def _fault(error: BaseException) -> Fault:
    """Return why the job failed, as the runner and a person need it."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, InvalidInput):
        return Fault(Reason.BAD_INPUT, error.detail, error.hint)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(m in text.lower() for m in _OUT_OF_MEMORY):
        return Fault(
            Reason.OUT_OF_MEMORY,
            f"The job ran out of memory ({text:.300}).",
            "Halve batch_size and double grad_accumulation_steps, lower max_seq_length, or turn"
            " grad_checkpoint on.",
        )
    return Fault(Reason.CODE_ERROR, text[:2000], "The end of the log has the traceback.")


def _limit_memory(limit: int | None) -> None:
    """Have MLX wait for memory to come back rather than take more than ``limit`` bytes."""
    if limit:
        import mlx.core as mx

        mx.set_memory_limit(limit)


def execute(job: Job) -> int:
    """Run the job's kind and tell how it ended; return the exit status."""
    fault: Fault | None = None
    cancelled = False
    try:
        engine = cast(_Engine, importlib.import_module(f"worker.engine.{Kind(job.task.kind)}"))
        _limit_memory(job.task.memory_limit)
        engine.run(job)
    except Cancelled:
        cancelled = True
    except Exception as error:
        fault = _fault(error)
        if fault is not error or error.__cause__:
            traceback.print_exc()
    # Before the last event: the runner may hang up as soon as it has read it.
    job.orders.finish()
    if fault:
        job.report.error(fault.code, fault.message, fault.hint)
        return 1
    job.report.done("cancelled" if cancelled else "succeeded")
    return 0


def main() -> int:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    for name in ("httpx", "filelock", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.update(_ENVIRONMENT)
    report = Reporter.from_environment()
    line = sys.stdin.readline()
    try:
        task = EngineTask.model_validate_json(line)
    except ValueError as error:
        report.error(Reason.CODE_ERROR, f"The worker sent no valid task: {error}")
        return 1
    orders = Orders(sys.stdin)
    orders.listen()
    return execute(Job(task, report, orders))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The order reader blocks on stdin for ever; leaving by the front door would wait for its lock.
    os._exit(status)
