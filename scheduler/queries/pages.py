"""What only the pages ask: has anything changed, how fast does it go, what is on a worker."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session, contains_eager

from espalier.states import ATTEMPT_LIVE
from scheduler.access import Actor, visible_projects
from scheduler.models import Attempt, Event, Job, Metric, Worker
from scheduler.queries import Document, stamp

#: Events that the story of a job leaves out: its head shows the newest of them.
_MOMENTARY = ("phase", "proof")
#: Events that a story holds at most: the newest.
STORY = 200


@dataclass(frozen=True, slots=True)
class Pulse:
    """A cheap summary of everything live; two that differ mean that something has happened.

    ``reports`` is each live attempt's job and number of reports, ``workers`` each worker's state.
    """

    event: int
    reports: frozenset[tuple[str, int]]
    workers: frozenset[tuple[str, bool, str | None]]


def pulse(session: Session) -> Pulse:
    """Return what the live pages compare: three small indexed queries."""
    reports = session.execute(
        select(Attempt.job_id, Attempt.last_seq).where(Attempt.state.in_(ATTEMPT_LIVE))
    )
    workers = session.execute(select(Worker.id, Worker.draining, Worker.seen_at))
    return Pulse(
        event=session.scalar(select(func.max(Event.id))) or 0,
        reports=frozenset((job, seq) for job, seq in reports),
        workers=frozenset((w, draining, stamp(seen)) for w, draining, seen in workers),
    )


def step_times(session: Session, attempt_id: str) -> tuple[int, float] | None:
    """Return (steps, seconds) from an attempt's first metric to its last, if it has two."""
    ends = session.execute(
        select(
            func.min(Metric.step),
            func.max(Metric.step),
            func.min(Metric.created_at),
            func.max(Metric.created_at),
        ).where(Metric.attempt_id == attempt_id)
    ).one()
    first, last, began, ended = ends
    if first is None or last == first or ended <= began:
        return None
    return last - first, (ended - began).total_seconds()


def story(session: Session, job: Job) -> list[Document]:
    """Return what happened to a job, oldest first.

    Of checkpoints in a row only the last is told, of one failure only its end.
    """
    events = session.scalars(
        select(Event)
        .where(Event.job_id == job.id, Event.type.not_in(_MOMENTARY))
        .order_by(Event.id.desc())
        .limit(STORY)
    )
    told: list[Document] = []
    for event in events:
        if told and _says_no_more(event, told[-1]):
            continue
        told.append(
            {
                "type": event.type,
                "message": event.message,
                "data": event.data,
                "attempt": event.attempt_id,
                "time": stamp(event.created_at),
            }
        )
    return told[::-1]


def _says_no_more(event: Event, following: Document) -> bool:
    if event.type == "checkpoint":
        return bool(following["type"] == "checkpoint")
    return event.type in ("error", "attempt_failed") and bool(following["message"] == event.message)


def jobs_on(session: Session, actor: Actor, worker_ids: list[str]) -> dict[str, list[Document]]:
    """Return worker id → the jobs it holds that the actor may see, for its tile."""
    found: dict[str, list[Document]] = {}
    attempts = session.scalars(
        select(Attempt)
        .join(Attempt.job)
        .join(Job.project)
        .options(contains_eager(Attempt.job))
        .where(
            Attempt.worker_id.in_(worker_ids),
            Attempt.state.in_(ATTEMPT_LIVE),
            visible_projects(actor),
        )
        .order_by(Attempt.id)
    )
    for attempt in attempts:
        job = attempt.job
        found.setdefault(attempt.worker_id, []).append(
            {
                "id": job.id,
                "name": job.name,
                "kind": job.kind,
                "phase": job.phase,
                "progress": job.progress,
                "metrics": job.metrics,
                "memory_bytes": attempt.memory_bytes,
            }
        )
    return found
