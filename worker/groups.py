"""Process groups: measuring and ending them, also those that a crashed worker left behind."""

import json
import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from worker.machine import process_disk_bytes, process_memory
from worker.watchdog import Usage

log = logging.getLogger("worker")

#: Seconds from SIGTERM to SIGKILL.
TERM_SECONDS = 0.5
#: Seconds by which two readings of one process's start may differ.
_CLOCK_SLACK = 2.0


def members(leader: int) -> list[psutil.Process]:
    """Return a process and its descendants; none when it is gone."""
    try:
        process = psutil.Process(leader)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def group_usage(leader: int) -> Usage:
    """Return what a process and its descendants hold and have used; all 0 when it is gone."""
    memory = moved = 0
    seconds = 0.0
    for member in members(leader):
        with suppress(psutil.Error):
            memory += process_memory(member)
            # Those of ended children are in it, or a compiler's work would be lost with its end.
            seconds += sum(member.cpu_times()[:4])
            moved += process_disk_bytes(member)
    return Usage(memory, seconds, moved)


def signal_group(group: int, number: int) -> bool:
    """Send a signal to a whole group; return whether anybody was there to get it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of a group that holds only zombies
        return False
    return True


def end_group(group: int) -> None:
    """SIGTERM, and after a moment SIGKILL to whoever is left; the stopped obey that only."""
    until = time.monotonic() + TERM_SECONDS
    alive = signal_group(group, signal.SIGTERM)
    while alive and time.monotonic() < until:
        time.sleep(0.02)
        alive = signal_group(group, 0)
    if alive:
        signal_group(group, signal.SIGKILL)


def remember(path: Path, leader: int) -> None:
    """Write down what identifies a group, for whoever finds it after a crash."""
    with suppress(psutil.Error):
        process = psutil.Process(leader)
        facts = {"pid": leader, "created": process.create_time(), "cmdline": process.cmdline()}
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(facts), encoding="utf-8")
        fresh.replace(path)


def end_remembered(path: Path) -> bool:
    """End the group written down in ``path`` if it is still the same one; say whether it was.

    A process id may belong to somebody else by now: start time and command line must agree.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        leader, created = int(facts["pid"]), float(facts["created"])
        cmdline = list(facts["cmdline"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if leader <= 1 or leader == os.getpgrp() or not _is_same(leader, created, cmdline):
        return False
    log.warning("ending process group %d, left behind by an earlier run", leader)
    end_group(leader)
    return True


def _is_same(leader: int, created: float, cmdline: list[str]) -> bool:
    try:
        process = psutil.Process(leader)
    except psutil.NoSuchProcess:
        return _has_orphans(leader, created)
    try:
        return (
            abs(process.create_time() - created) < _CLOCK_SLACK
            and process.cmdline() == cmdline
            and os.getpgid(leader) == leader
        )
    except (psutil.Error, OSError):
        return False


def _has_orphans(group: int, created: float) -> bool:
    """Say whether a group lives on without its leader. Its id cannot be given away before that."""
    for process in psutil.process_iter(["create_time"]):
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group:
                return bool(process.info["create_time"] >= created - _CLOCK_SLACK)
    return False
