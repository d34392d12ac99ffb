"""What the processes of a group are doing, as text for a log: taken before a hung child is killed.

On a Mac `sample` looks into each process, stopped or not. On Linux /proc tells each thread's state
and where in the kernel it waits; its own Python stacks a child writes itself, when it is asked by
a signal (worker.engine.__main__). A stopped one cannot answer; its state says so.
"""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

#: Asks a child for the Python stacks of its threads.
ASK = signal.SIGUSR1
#: Lines that one process's sample may take; a call graph of a Mac can have thousands.
_LINES = 300
_SAMPLE_SECONDS = 2
_SAMPLE_PATIENCE = 60.0


def sample(pids: Sequence[int], scratch: Path) -> str:
    """Return what each process does now; ``scratch`` is a directory to write in."""
    take = _sample_mac if sys.platform == "darwin" else _sample_linux
    return "".join(_shortened(take(pid, scratch)) for pid in pids)


def ask(pid: int, *, listens: bool) -> bool:
    """Ask a child to write its Python stacks; say whether it can be expected to.

    ``listens`` says that it was heard and so is past the first lines of its program; where the
    system tells what a process catches, that counts instead. The signal would end any other.
    """
    status = _read(Path("/proc") / str(pid) / "status")
    if status:
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
        listens = bool(caught and int(caught[1], 16) >> (ASK - 1) & 1)
        listens = listens and not re.search(r"^State:\s*[TtZX]", status, re.MULTILINE)
    if listens:
        with suppress(ProcessLookupError):
            os.kill(pid, ASK)
            return True
    return False


def _shortened(text: str) -> str:
    lines = text.splitlines()
    if len(lines) > _LINES:
        lines = [*lines[:_LINES], f"… {len(lines) - _LINES} more lines"]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sample_mac(pid: int, scratch: Path) -> str:
    report = scratch / f"sample-{pid}.txt"
    command = ["/usr/bin/sample", str(pid), str(_SAMPLE_SECONDS), "-mayDie", "-file", str(report)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SAMPLE_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"process {pid} (sample): {error}"
    text = _read(report)
    report.unlink(missing_ok=True)
    return f"process {pid} (sample)\n{text or done.stderr.strip()[:500]}"


def _sample_linux(pid: int, scratch: Path) -> str:
    del scratch
    process = Path("/proc") / str(pid)
    command = _read(process / "cmdline").replace("\0", " ").strip()
    threads = sorted(process.glob("task/*"), key=lambda path: int(path.name))
    lines = [f"process {pid} ({command[:200]}): {_state(process)}, {len(threads)} threads"]
    seen = Counter(_thread(thread) for thread in threads)
    lines += [f"  {count} × {what}" for what, count in seen.most_common()]
    return "\n".join(lines)


def _thread(task: Path) -> str:
    """Name, state and place of a thread; the place is the kernel's, where it may be read."""
    name = _read(task / "comm").strip()
    place = _read(task / "wchan").strip()
    where = f" in {place}" if place not in ("", "0") else ""
    stack = _read(task / "stack").splitlines()
    frames = [line.split()[-1].split("+")[0] for line in stack[:8] if line.strip()]
    return f"{name}: {_state(task)}{where}{' < '.join(['', *frames]) if frames else ''}"


def _state(directory: Path) -> str:
    found = re.search(r"^State:\s*(.+)$", _read(directory / "status"), re.MULTILINE)
    return found[1] if found else "gone"
