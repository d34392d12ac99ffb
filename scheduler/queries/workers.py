"""Workers as documents: what each Mac is, and what it does now."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import NotFound
from espalier.settings import Settings
from espalier.states import ATTEMPT_LIVE
from scheduler.access import Actor, visible_projects
from scheduler.db import now
from scheduler.models import Attempt, Job, Worker
from scheduler.placing.fleet import worker_state
from scheduler.queries import Document, stamp


def list_workers(session: Session, actor: Actor, settings: Settings) -> list[Document]:
    """Return every worker that is not revoked, by name.

    ``running`` holds the jobs the actor may see; a foreign one only shows in ``busy_slots``.
    """
    workers = session.scalars(
        select(Worker).where(Worker.revoked_at.is_(None)).order_by(Worker.name)
    )
    busy: dict[str, int] = {}
    for (worker_id,) in session.execute(
        select(Attempt.worker_id).where(Attempt.state.in_(ATTEMPT_LIVE))
    ):
        busy[worker_id] = busy.get(worker_id, 0) + 1
    running: dict[str, list[str]] = {}
    for worker_id, job_id in session.execute(
        select(Attempt.worker_id, Attempt.job_id)
        .join(Attempt.job)
        .join(Job.project)
        .where(Attempt.state.in_(ATTEMPT_LIVE), visible_projects(actor))
        .order_by(Attempt.id)
    ):
        running.setdefault(worker_id, []).append(job_id)
    moment = now(session)
    return [
        {
            "id": worker.id,
            "name": worker.name,
            "state": worker_state(worker, moment, settings, worker.id in busy),
            "machine": worker.machine,
            "slots": worker.slots,
            "busy_slots": busy.get(worker.id, 0),
            "draining": worker.draining,
            "created_at": stamp(worker.created_at),
            "started_at": stamp(worker.started_at),
            "seen_at": stamp(worker.seen_at),
            "running": running.get(worker.id, []),
        }
        for worker in workers
    ]


def find_worker(session: Session, id_or_name: str) -> Worker:
    """Return the worker by id or name. Raises NotFound."""
    worker = session.scalar(
        select(Worker)
        .where((Worker.id == id_or_name) | (Worker.name == id_or_name))
        .order_by(Worker.id != id_or_name)
        .limit(1)
    )
    if worker is None:
        raise NotFound(f"There is no worker {id_or_name!r}.", hint="`espalier workers` lists them.")
    return worker
