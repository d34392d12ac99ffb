"""What placement makes of a prediction: a job waits for a worker that can hold it, never for ever.

A queued job is judged once, when the scheduler first sees it: its predicted need, corrected by what
jobs like it took, becomes ``Job.min_memory_bytes``. 0 says that it was judged and fits everywhere,
or that nobody can tell: it goes where it always went. A prediction may be wrong and the largest
Mac gone for good, so it counts only up to the most that a worker of late has had to give
(``ceiling``); such a job is placed there with a warning, and the ladder has the rest. What a job
was seen to run out of is no prediction: it counts in full.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, String, case, cast, func, or_, select
from sqlalchemy.orm import Session

from espalier.errors import EspalierError
from espalier.states import JobState
from scheduler.events import record
from scheduler.lifecycle.ladder import MEMORY, size
from scheduler.models import Job, Worker
from scheduler.placing import estimates

#: A worker that was not heard of for so long is not waited for.
PATIENCE = timedelta(hours=1)
#: Jobs judged in one tick: each is a few reads.
BATCH = 100
#: Steps per doubling that a need is cut to, downwards: jobs of one step are placed alike, and a
#: step is less than the predictor's error.
STEPS = 16


def rounded(need: int) -> int:
    """Return the step below ``need`` (bytes): 16 to a doubling, so at most 1/16 less."""
    step = 1 << max(need.bit_length() - STEPS.bit_length(), 0)
    return need // step * step


def judge(session: Session) -> None:
    """Tell what queued jobs need that nobody has looked at."""
    unseen = select(Job).where(Job.state == JobState.QUEUED, Job.min_memory_bytes.is_(None))
    limits = [estimates.gives(worker) for worker in estimates.workers(session)]
    if not limits:
        return
    best = (Job.priority.desc(), Job.queued_at, Job.id)
    for job in session.scalars(unseen.order_by(*best).limit(BATCH)):
        need = _needed(session, job)
        job.min_memory_bytes = rounded(need) if need and need > min(limits) else 0


def _needed(session: Session, job: Job) -> int | None:
    """Return what a job needs; what cannot be told of one job keeps no other from its place."""
    try:
        return estimates.needed(session, job)
    except (EspalierError, ValidationError, ValueError):
        return None


def ceiling(session: Session, moment: datetime) -> int:
    """Return the most that a worker has to give which was heard of within ``PATIENCE``."""
    return max(
        (
            estimates.gives(worker)
            for worker in estimates.workers(session)
            if worker.seen_at and worker.seen_at > moment - PATIENCE
        ),
        default=0,
    )


def held(rungs: Sequence[Any] | None) -> bool:
    """Whether a job ran out of memory on as much: its need is no prediction."""
    return any(rung.get("rung") == MEMORY for rung in rungs or ())


def counting(most: int) -> ColumnElement[int]:
    """Return ``Job.min_memory_bytes`` as placement counts it; ``most`` is the ceiling (bytes)."""
    seen = cast(Job.rungs, String).like(f'%"{MEMORY}"%')
    need = func.coalesce(Job.min_memory_bytes, 0)
    return case((or_(seen, need <= most), need), else_=most)


def warn(session: Session, moment: datetime, job: Job, worker: Worker) -> None:
    """Say that a job was placed where it is predicted not to fit, when it was."""
    gives, need = estimates.gives(worker), job.min_memory_bytes or 0
    if need <= gives or held(job.rungs):
        return
    said = (
        f"It is predicted to need {size(need)}, and no worker has more to give than {worker.name}:"
        f" {size(gives)}. It is tried there; espalier explain says what would make it fit."
    )
    record(session, moment, job, "notice", said, level="warning")
