"""Ending processes for certain: the leader is asked, what it leaves behind is killed."""

import time
from collections.abc import Iterable

import psutil

#: Seconds between looks at processes that are ending.
_TICK = 0.05
#: Seconds that a killed process gets to disappear.
_KILL_WAIT = 5.0


def identity(pid: int) -> float | None:
    """Return when the process began (seconds since the epoch), None when there is none.

    Pid and beginning together name a process for ever; a pid alone is given out again.
    """
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def is_alive(process: psutil.Process) -> bool:
    """Return whether it still runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end(pids: Iterable[int], grace: float) -> None:
    """Send SIGTERM to each process, and SIGKILL to what is left of their trees after ``grace``.

    Descendants are not told: a supervisor ends its own. Those it forgets are found by ancestry
    as long as it lives, so they are remembered from the first look on. Seconds.
    """
    leaders = [process for pid in pids if (process := _process(pid)) is not None]
    known = {process.pid: process for process in leaders}
    _remember_children(known)
    for leader in leaders:
        _send(leader, kill=False)
    deadline = time.monotonic() + grace
    while any(map(is_alive, known.values())) and time.monotonic() < deadline:
        _remember_children(known)
        time.sleep(_TICK)
    left = [process for process in known.values() if is_alive(process)]
    for process in left:
        _send(process, kill=True)
    deadline = time.monotonic() + _KILL_WAIT
    while any(map(is_alive, left)) and time.monotonic() < deadline:
        time.sleep(_TICK)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _remember_children(known: dict[int, psutil.Process]) -> None:
    for process in list(known.values()):
        try:
            children = process.children(recursive=True)
        except psutil.Error:
            continue
        for child in children:
            known.setdefault(child.pid, child)


def _send(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.Error:
        return
