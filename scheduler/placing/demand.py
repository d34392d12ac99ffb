"""What placement decides on, read from SQL: free slots, queued jobs, and who holds what."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from espalier.settings import Settings
from espalier.states import ATTEMPT_LIVE, MACHINE_FAULTS, AttemptState, JobState
from scheduler.lifecycle import retries
from scheduler.models import Attempt, Job, Project, Worker
from scheduler.placing import fleet, holdings, needs
from scheduler.placing.placement import Candidate, Capacity, Running

#: A worker that let tickets lie is tried again after this many claim timeouts.
SUSPECT_TIMEOUTS = 10


def capacities(session: Session, moment: datetime, config: Settings) -> Iterator[Capacity]:
    """Workers that are heard of, not draining and not suspect; some may have no slot free."""
    away = fleet.away_after(config)
    patience = timedelta(seconds=SUSPECT_TIMEOUTS * config.claim_timeout_seconds)
    held = _held(session)
    alive = select(Worker).where(
        Worker.seen_at > moment - away,
        Worker.seen_at < moment + away,  # later was written by a clock that has been set back
        Worker.draining.is_(False),
        Worker.revoked_at.is_(None),
    )
    for worker in session.scalars(alive):
        suspect = worker.unclaimed >= config.unclaimed_limit
        if not (suspect and moment - _last_placed(session, worker) < patience):
            free = worker.slots - held.get(worker.id, 0)
            memory = int(worker.machine.get("memory_limit") or 0)
            yield Capacity(worker.id, worker.name, free, memory)


def running(session: Session, moment: datetime, workers: Sequence[str]) -> list[Running]:
    """Attempts that preemption has to know of: those it may end, and those that end anyway."""
    leaving = or_(
        Job.cancel_requested_at.is_not(None),
        Job.pause_requested_at.is_not(None),
        Attempt.preempt_requested_at.is_not(None),
    )
    query = (
        select(Attempt.id, Attempt.worker_id, Job.priority, Attempt.claimed_at, leaving)
        .join(Job, Job.id == Attempt.job_id)
        .join(Project, Project.id == Job.project_id)
        .where(
            Attempt.state == AttemptState.RUNNING,
            Attempt.worker_id.in_(workers),
            or_(Project.preemptible, leaving),
        )
    )
    return [
        Running(attempt_id, worker_id, priority, claimed_at or moment, ends)
        for attempt_id, worker_id, priority, claimed_at, ends in session.execute(query)
    ]


def candidates(
    session: Session,
    moment: datetime,
    workers: Sequence[Capacity],
    held: Sequence[Running],
    most: int,
) -> list[Candidate]:
    """Queued jobs that no attempt holds and whose backoff is over, best first.

    Of jobs that need the same memory only as many are of use as there are slots to get, or as
    are placed at once (``most``). So many of each need are read, and none that fit no worker:
    whatever stands at the head of the queue, what fits behind it is seen.
    """
    slots = min(sum(max(w.free, 0) for w in workers) + len(held), most)
    if not slots:
        return []
    live = select(Attempt.id).where(Attempt.job_id == Job.id, Attempt.state.in_(ATTEMPT_LIVE))
    best = (Job.priority.desc(), Job.queued_at, Job.id)
    need = needs.counting(needs.ceiling(session, moment))
    rank = func.row_number().over(partition_by=need, order_by=best)
    ready = (
        select(Job.id, Job.priority, Job.queued_at, need.label("need"), rank.label("rank"))
        .where(
            Job.state == JobState.QUEUED,
            Job.cancel_requested_at.is_(None),
            Job.pause_requested_at.is_(None),
            or_(
                Job.not_before.is_(None),
                Job.not_before <= moment,
                Job.not_before > moment + retries.LONGEST,
            ),
            need <= max(w.memory_bytes for w in workers),
            ~live.exists(),
        )
        .subquery()
    )
    rows = session.execute(select(ready).where(ready.c.rank <= slots)).all()
    job_ids = [row.id for row in rows]
    avoid = _avoid(session, job_ids)
    free = [w.worker_id for w in workers if w.free > 0]
    inputs = holdings.inputs_of(session, job_ids, free)
    unknown = holdings.Inputs()
    return [
        Candidate(
            row.id,
            row.priority,
            row.queued_at,
            frozenset(avoid.get(row.id, ())),
            row.need,
            inputs.get(row.id, unknown).size,
            inputs.get(row.id, unknown).held,
        )
        for row in rows
    ]


def _avoid(session: Session, job_ids: Sequence[str]) -> dict[str, set[str]]:
    """Return job → the workers whose fault ended an attempt of it."""
    faults = select(Attempt.job_id, Attempt.worker_id).where(
        Attempt.job_id.in_(job_ids), Attempt.reason.in_(MACHINE_FAULTS)
    )
    avoid: dict[str, set[str]] = {}
    for job_id, worker_id in session.execute(faults):
        avoid.setdefault(job_id, set()).add(worker_id)
    return avoid


def _held(session: Session) -> dict[str, int]:
    """Return worker → attempts that it was given and that have not ended."""
    live = select(Attempt.worker_id, func.count()).where(Attempt.state.in_(ATTEMPT_LIVE))
    rows = session.execute(live.group_by(Attempt.worker_id))
    return dict(rows.all())


def _last_placed(session: Session, worker: Worker) -> datetime:
    query = select(func.max(Attempt.placed_at)).where(Attempt.worker_id == worker.id)
    return session.scalar(query) or worker.created_at
