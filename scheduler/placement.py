"""Which job goes to which worker: pure and deterministic, no clock, no SQL."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Candidate:
    """A queued job. ``avoid`` are workers that lost it before: they get it last."""

    job_id: str
    priority: int
    queued_at: datetime
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Capacity:
    """A worker that may be given jobs, and how many more it can run."""

    worker_id: str
    name: str
    free: int


@dataclass(frozen=True, slots=True)
class Placement:
    job_id: str
    worker_id: str


def place(jobs: Iterable[Candidate], workers: Sequence[Capacity]) -> list[Placement]:
    """Assign jobs to free slots: priority, then age, each to the worker with most slots free.

    First fit: a job that fits nowhere never holds back one that does. Ties go by name, so that
    the same queue on the same workers gives the same assignments.
    """
    free = {w.worker_id: w.free for w in workers}
    names = {w.worker_id: w.name for w in workers}
    total = sum(free.values())
    placements: list[Placement] = []
    for job in sorted(jobs, key=lambda j: (-j.priority, j.queued_at, j.job_id)):
        if len(placements) == total:
            break
        best = min(
            (w for w in free if free[w] > 0),
            key=lambda w: (w in job.avoid, -free[w], names[w]),
        )
        free[best] -= 1
        placements.append(Placement(job.job_id, best))
    return placements
