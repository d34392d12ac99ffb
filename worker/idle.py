"""Children without a job: one that is warm, and one that still holds an eval's base.

An idle child lives in the share of a free slot: a job that takes the last one has them all ended
before it gets its task, so that no job finds less memory than its worker promised. A warm child
has imported everything and has worked for nobody. A kept one has done evals on one base and gets
nothing but evals on the same blobs; it is ended when it grew too large or waited too long.

All are started by one thread that lives as long as the worker, because on Linux a child ends with
the thread that started it.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import psutil

from worker.child import Child, environment
from worker.groups import end_remembered, group_usage
from worker.machine import versions
from worker.serving import SERVE, WARM

log = logging.getLogger("worker")

#: Seconds in which a warming child has to be ready: kernels may be compiled for the first time.
WARM_SECONDS = 600.0
#: Seconds in which an idle child has to say that it is there.
ANSWER_SECONDS = 2.0
#: Seconds between two looks at idle children.
LOOK_SECONDS = 5.0
#: Seconds after the worker's start in which nothing is warmed.
CALM_SECONDS = 1.0
#: Seconds until another child is warmed after one that came to nothing; doubled each time.
AGAIN_SECONDS, AGAIN_MOST = 60.0, 3600.0
#: Bytes that must be free on the machine: idle children are the first to go.
ROOM = 1 << 30

#: What a base is told by: path and sha256 of each file of the model.
Base = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Limits:
    """``keep_seconds`` 0 keeps no base; ``keep_bytes`` is the most that a kept child may hold."""

    slots: int = 1
    warm: bool = True
    keep_seconds: float = 600.0
    keep_bytes: int = 0


@dataclass(slots=True)
class _Waiting:
    """An idle child: since when, by what code and environment it was started, and its base."""

    child: Child
    since: float
    stamp: tuple[object, ...]
    base: Base | None = None


class Idle:
    """A worker's children without a job. Safe to share between threads."""

    def __init__(
        self,
        directory: Path,
        limits: Limits,
        engine: str = "worker.engine",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._limits = limits
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._busy: dict[Child, tuple[object, ...]] = {}
        self._taking = 0
        self._warm: _Waiting | None = None
        self._kept: _Waiting | None = None
        self._closed = False
        self._not_before = clock() + CALM_SECONDS
        self._failures = self._count = 0
        self._thread = threading.Thread(target=self._run, name="children", daemon=True)

    def start(self) -> None:
        """End what an earlier process left, and begin to warm."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for record in self._directory.glob("*.json"):
            end_remembered(record)
            record.unlink(missing_ok=True)
        self._thread.start()

    def close(self) -> None:
        """End every idle child, and start none any more."""
        with self._lock:
            self._closed = True
            self._work.put(None)
            rest = self._take_all()
        _end(rest)

    # --- For an attempt -------------------------------------------------------------------

    def take(self, base: Base | None) -> Child:
        """Return a child for a job; ``base`` is the model of one that a kept child may do."""
        with self._lock:
            self._taking += 1
            chosen = self._choose(base)
            full = len(self._busy) + self._taking >= self._limits.slots
            spare = self._take_all() if full else []
        try:
            _end(spare)
            if chosen is not None and not self._is_good(chosen):
                _end([chosen])
                chosen = None
            child = chosen.child if chosen else self._started(SERVE)
            with self._lock:
                self._busy[child] = chosen.stamp if chosen else self._stamp()
        finally:
            with self._lock:
                self._taking -= 1
        return child

    def keep(self, child: Child, base: Base) -> None:
        """Take a child that rests after an eval, with its base, unless that is too much."""
        child.rest(self._record())
        with self._lock:
            stamp = self._busy.pop(child, ())
            spare, self._kept = self._kept, None
            fits = not self._closed and self._limits.keep_seconds > 0
            if fits and group_usage(child.pid).memory <= self._limits.keep_bytes:
                self._kept = _Waiting(child, self._clock(), stamp, base)
        if self._kept is None or self._kept.child is not child:
            child.kill()
        _end([spare] if spare else [])
        self._work.put(self._look)

    def gone(self, child: Child) -> None:
        """A job's child has ended: its slot is free."""
        with self._lock:
            self._busy.pop(child, None)
        self._work.put(self._look)

    def _choose(self, base: Base | None) -> _Waiting | None:
        kept, warm = self._kept, self._warm
        if kept is not None and base and kept.base == base:
            self._kept = None
            return kept
        self._warm = None
        return warm

    def _take_all(self) -> list[_Waiting]:
        found = [one for one in (self._warm, self._kept) if one is not None]
        self._warm = self._kept = None
        return found

    def _is_good(self, waiting: _Waiting) -> bool:
        """Whether a child is there, of today's code and environment; one may be warming still."""
        if waiting.child.ended or waiting.stamp != self._stamp():
            return False
        if not waiting.child.ready.is_set():
            return True
        if waiting.child.answers(ANSWER_SECONDS):
            return True
        log.warning("the idle child %d does not answer", waiting.child.pid)
        return False

    # --- The thread that starts children --------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=self._rest())
            except queue.Empty:
                work = self._look
            if work is None:
                return
            try:
                work()
            except Exception:
                log.exception("idle children")

    def _rest(self) -> float:
        """Seconds to the next look."""
        until = self._not_before - self._clock()
        return min(until, LOOK_SECONDS) if until > 0 else LOOK_SECONDS

    def _started(self, *arguments: str) -> Child:
        """Start a child by the thread that lives as long as this process."""
        made: Future[Child] = Future()

        def start() -> None:
            try:
                made.set_result(self._start(*arguments))
            except BaseException as error:
                made.set_exception(error)

        with self._lock:
            closed = self._closed
            if not closed:
                self._work.put(start)
        if closed:
            return self._start(*arguments)
        return made.result()

    def _start(self, *arguments: str) -> Child:
        return Child(self._directory, self._record(), self._engine, *arguments)

    def _record(self) -> Path:
        self._count += 1
        return self._directory / f"{self._count}.json"

    def _look(self) -> None:
        """End idle children that are not to be used; warm one where a slot and memory are free."""
        now = self._clock()
        short = psutil.virtual_memory().available < ROOM
        with self._lock:
            spare = []
            if self._warm and (short or self._is_bad(self._warm, now)):
                spare.append(self._warm)
                self._warm = None
            if self._kept and (short or self._is_stale(self._kept, now)):
                spare.append(self._kept)
                self._kept = None
            wanted = self._is_wanted(now) and not short
        _end(spare)
        if wanted:
            stamp = self._stamp()
            waiting = _Waiting(self._start(SERVE, WARM), now, stamp)
            with self._lock:
                if self._is_wanted(now):
                    self._warm, waiting = waiting, None  # type: ignore[assignment]
            _end([waiting] if waiting else [])

    def _is_wanted(self, now: float) -> bool:
        free = self._limits.slots - len(self._busy) - self._taking
        allowed = self._limits.warm and not self._closed and now >= self._not_before
        return allowed and self._warm is None and free > 0

    def _is_bad(self, warm: _Waiting, now: float) -> bool:
        if warm.child.ready.is_set() and not warm.child.ended:
            self._failures = 0
            return warm.stamp != self._stamp()
        if not warm.child.ended and now - warm.since < WARM_SECONDS:
            return False
        why = "ended" if warm.child.ended else f"is not ready after {WARM_SECONDS:.0f} s"
        again = min(AGAIN_SECONDS * 2**self._failures, AGAIN_MOST)
        log.warning("the warming child %d %s; again in %.0f s", warm.child.pid, why, again)
        self._failures += 1
        self._not_before = now + again
        return True

    def _is_stale(self, kept: _Waiting, now: float) -> bool:
        too_long = now - kept.since > self._limits.keep_seconds
        too_large = group_usage(kept.child.pid).memory > self._limits.keep_bytes
        return kept.child.ended or too_long or too_large or kept.stamp != self._stamp()

    def _stamp(self) -> tuple[object, ...]:
        """What a child is started by: a new version, changed code or another environment."""
        return (tuple(sorted(versions().items())), _code(), tuple(sorted(_environment().items())))


def _environment() -> dict[str, str]:
    return environment(os.environ)


def _code() -> tuple[tuple[str, int], ...]:
    """The child's own modules, each with the time of its last change."""
    here = Path(__file__).parent
    folders = (here, here.parent / "espalier")
    files = [file for folder in folders for file in folder.rglob("*.py")]
    return tuple(sorted((str(file), file.stat().st_mtime_ns) for file in files))


def _end(waiting: Iterable[_Waiting]) -> None:
    for one in waiting:
        one.child.kill()
        one.child.forget()
