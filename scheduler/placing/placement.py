"""Which job goes to which worker, and who makes room: pure and deterministic, no clock, no SQL."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Candidate:
    """A queued job. ``avoid`` are workers that failed it before: they get it last.

    ``held`` is worker → bytes of the job's inputs, of ``input_bytes`` in all, that lie there.
    """

    job_id: str
    priority: int
    queued_at: datetime
    avoid: frozenset[str] = frozenset()
    min_memory_bytes: int = 0
    input_bytes: int = 0
    held: Mapping[str, int] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Capacity:
    """A worker that may be given jobs, how many more it can run, and what it gives to each."""

    worker_id: str
    name: str
    free: int
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """``have`` of the ``need`` bytes of the job's inputs lie at the worker already."""

    job_id: str
    worker_id: str
    have: int = 0
    need: int = 0

    def told(self, worker: str) -> str:
        """Say for people where the job went, and why there."""
        if not self.have:
            return f"Placed on {worker}."
        return f"Placed on {worker}: has {_of(self.have, self.need)} of its inputs."


@dataclass(frozen=True, slots=True)
class Running:
    """An attempt that holds a slot; ``leaving`` when it was already told to end."""

    attempt_id: str
    worker_id: str
    priority: int
    claimed_at: datetime
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Victim:
    """A running attempt that has to make room for a job."""

    attempt_id: str
    job_id: str


def _of(have: int, need: int) -> str:
    """Return ``4.1 of 4.3 GB``, in powers of ten."""
    power, unit = next(
        (item for item in ((9, "GB"), (6, "MB"), (3, "kB")) if need >= 10 ** item[0]), (0, "B")
    )
    digits = 1 if power else 0
    return f"{have / 10**power:.{digits}f} of {need / 10**power:.{digits}f} {unit}"


# --- Free slots ---------------------------------------------------------------------------


def place(jobs: Iterable[Candidate], workers: Sequence[Capacity]) -> list[Placement]:
    """Assign jobs to free slots: priority, then age, each to the worker that has to fetch least.

    First fit: a job that fits nowhere never holds back one that does. Ties go to the worker with
    most slots free, then to the one with less memory, which keeps the big ones for those that need
    them, then by name, so that the same queue on the same workers gives the same assignments.
    """
    slots = _Slots(workers)
    placements: list[Placement] = []
    for job in sorted(jobs, key=_order):
        if slots.full:
            break
        worker_id = slots.take(job)
        if worker_id:
            have = min(job.held.get(worker_id, 0), job.input_bytes)
            placements.append(Placement(job.job_id, worker_id, have, job.input_bytes))
    return placements


def _order(job: Candidate) -> tuple[int, datetime, str]:
    return (-job.priority, job.queued_at, job.job_id)


#: Bytes that a LAN moves in a moment: inputs are compared in steps of so many, and a worker that
#: holds less than one is as good as any other.
STEP = 16 << 20

#: Most slots free first, then less memory, then name; the last is the worker's index.
_Key = tuple[int, int, str, int]
_NONE: _Key = (1, 0, "", -1)  # greater than any worker that has a slot free


class _Slots:
    """The best worker with at least so much memory, in logarithmic time.

    A tree of minima over the workers by ascending memory: whoever has enough is a suffix.
    """

    def __init__(self, workers: Sequence[Capacity]) -> None:
        self._workers = sorted(workers, key=lambda w: (w.memory_bytes, w.name))
        self._memory = [w.memory_bytes for w in self._workers]
        self._index = {w.worker_id: n for n, w in enumerate(self._workers)}
        self._free = [w.free for w in self._workers]
        self._size = 1 << max(len(self._workers) - 1, 0).bit_length()
        self._tree = [_NONE] * (2 * self._size)
        for n in range(len(self._workers)):
            self._tree[self._size + n] = self._key(n)
        for node in range(self._size - 1, 0, -1):
            self._tree[node] = min(self._tree[2 * node], self._tree[2 * node + 1])

    @property
    def full(self) -> bool:
        return self._tree[1] is _NONE

    def take(self, job: Candidate) -> str | None:
        """Give the job a slot; return its worker, None when it fits nowhere."""
        first = bisect_left(self._memory, job.min_memory_bytes)
        near = self._nearest(job, first)
        if near is not None:
            return self._give(near)
        avoided = [self._index[w] for w in job.avoid if w in self._index]
        for n in avoided:
            self._set(n, _NONE)
        found = self._best(first)
        for n in avoided:
            self._set(n, self._key(n))
        if found is _NONE and avoided:
            found = self._best(first)
        if found is _NONE:
            return None
        return self._give(found[3])

    def _nearest(self, job: Candidate, first: int) -> int | None:
        """Return the worker from ``first`` on that holds most of the job's inputs, if any does."""
        best: tuple[int, _Key] | None = None
        for worker_id, held in job.held.items():
            n = self._index.get(worker_id, -1)
            if n < first or held < STEP or self._free[n] <= 0 or worker_id in job.avoid:
                continue
            key = (-(held // STEP), self._key(n))
            best = key if best is None else min(best, key)
        return None if best is None else best[1][3]

    def _give(self, n: int) -> str:
        self._free[n] -= 1
        self._set(n, self._key(n))
        return self._workers[n].worker_id

    def _key(self, n: int) -> _Key:
        if self._free[n] <= 0:
            return _NONE
        return (-self._free[n], self._memory[n], self._workers[n].name, n)

    def _set(self, n: int, key: _Key) -> None:
        node = self._size + n
        self._tree[node] = key
        while node > 1:
            node //= 2
            self._tree[node] = min(self._tree[2 * node], self._tree[2 * node + 1])

    def _best(self, first: int) -> _Key:
        """Return the minimum from leaf ``first`` to the last."""
        if first == 0:
            return self._tree[1]
        if first >= len(self._workers):
            return _NONE
        node = self._size + first
        best = self._tree[node]
        while node > 1:
            if node % 2 == 0:  # a left child: all below its right sibling is in the suffix
                best = min(best, self._tree[node + 1])
            node //= 2
        return best


# --- Slots that have to be freed ----------------------------------------------------------


def victims(
    jobs: Iterable[Candidate], running: Iterable[Running], memory: Mapping[str, int]
) -> list[Victim]:
    """Choose who makes room for jobs that found no slot: one attempt a job, none for nothing.

    A victim has a strictly lower priority than its job, and its worker (``memory``: id → bytes)
    is big enough: of those the lowest priority, then the youngest, which loses least. A slot that
    is being left already serves the first job that fits it.
    """
    chosen: list[Victim] = []
    held = [r for r in running if r.worker_id in memory]
    leaving = [r for r in held if r.leaving]
    staying = sorted((r for r in held if not r.leaving), key=_cheapest)
    most = max((memory[r.worker_id] for r in held), default=0)
    for job in sorted(jobs, key=_order):
        if not staying or staying[0].priority >= job.priority:
            break  # nor is there one for any job after it
        if job.min_memory_bytes > most:
            continue
        expected = _first(leaving, job, memory)
        if expected is not None:
            leaving.remove(expected)
            continue
        found = _first((r for r in staying if r.priority < job.priority), job, memory)
        if found is not None:
            staying.remove(found)
            chosen.append(Victim(found.attempt_id, job.job_id))
    return chosen


def _cheapest(attempt: Running) -> tuple[int, float, str]:
    return (attempt.priority, -attempt.claimed_at.timestamp(), attempt.attempt_id)


def _first(
    attempts: Iterable[Running], job: Candidate, memory: Mapping[str, int]
) -> Running | None:
    return next((r for r in attempts if memory[r.worker_id] >= job.min_memory_bytes), None)
