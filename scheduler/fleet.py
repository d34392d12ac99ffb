"""Workers: how they join, say hello, are heard of, and are put aside."""

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, object_session

from espalier.errors import Conflict, Unavailable
from espalier.messages import Heartbeat, Hello, Orders, Welcome
from espalier.queue import queue_for
from espalier.refs import check_name
from espalier.settings import Settings
from espalier.states import ATTEMPT_LIVE, AttemptState, Reason
from scheduler import access, ingest, jobs
from scheduler.access import Actor
from scheduler.db import now
from scheduler.models import Attempt, Worker

#: A busy machine may miss a few reports; it is not away for that.
AWAY_SECONDS = 15.0


def join(session: Session, name: str) -> tuple[Worker, str]:
    """Create a worker and its token (shown once). Conflict when the name is taken."""
    check_name(name, "worker")
    if session.scalar(select(Worker.id).where(Worker.name == name)):
        raise Conflict(f"There is a worker called {name} already: join under another name.")
    worker = Worker(name=name, created_at=now(session), machine={})
    session.add(worker)
    session.flush()
    return worker, access.mint(session, "worker", worker=worker, name=name)


def hello(session: Session, worker: Worker, message: Hello, config: Settings) -> Welcome:
    """A worker process has started: what its last process held is given back at once."""
    moment = now(session)
    if not config.broker_url:
        raise Unavailable("The control plane has no broker: set ESPALIER_BROKER_URL.")
    if worker.boot_id != message.boot_id:
        worker.boot_id, worker.started_at = message.boot_id, moment
        _recover(session, worker)
    worker.machine = message.machine.model_dump(mode="json")
    worker.slots, worker.seen_at, worker.unclaimed = message.slots, moment, 0
    return Welcome(
        worker_id=worker.id,
        name=worker.name,
        queue=queue_for(worker.id),
        broker_url=config.broker_url,
        lease_seconds=config.lease_seconds,
        report_seconds=config.report_seconds,
        upstream_hub=config.upstream_hub,
    )


def _recover(session: Session, worker: Worker) -> None:
    """The process is new, so nothing of the old one runs; unclaimed tickets are sent again."""
    for attempt in live_attempts(session, worker):
        if attempt.state == AttemptState.PLACED:
            attempt.published_at = None
        else:
            text = f"{worker.name} was started again."
            jobs.lose(session, attempt, Reason.WORKER_STOPPED, text)


def heartbeat(session: Session, worker: Worker, message: Heartbeat, config: Settings) -> Orders:
    """An idle worker is alive; one that holds attempts hears orders here as well."""
    if worker.boot_id != message.boot_id:
        raise Conflict(f"{worker.name} was started elsewhere since: this process must stop.")
    worker.seen_at = now(session)
    if message.machine is not None:
        worker.machine = message.machine.model_dump(mode="json")
    held = [a for a in live_attempts(session, worker) if a.id in message.running]
    return ingest.orders(worker, held)


def live_attempts(session: Session, worker: Worker) -> list[Attempt]:
    """The attempts that the worker was given and has not ended."""
    return list(
        session.scalars(
            select(Attempt).where(Attempt.worker_id == worker.id, Attempt.state.in_(ATTEMPT_LIVE))
        )
    )


def set_draining(session: Session, actor: Actor, worker: Worker, draining: bool) -> None:
    """A draining worker finishes what it holds and gets no more."""
    worker.draining = draining
    access.audit(session, actor, "worker.drain" if draining else "worker.resume", worker.name)


def away_after(config: Settings) -> timedelta:
    """How long a worker may be silent and still be given jobs."""
    return timedelta(seconds=max(4 * config.report_seconds, AWAY_SECONDS))


def worker_state(
    worker: Worker, moment: datetime, config: Settings, busy: bool | None = None
) -> str:
    """One word for people: revoked, away, suspect, draining, busy or idle.

    ``busy`` is whether it holds attempts, where the caller knows; else it is looked up.
    """
    if worker.revoked_at:
        return "revoked"
    if worker.seen_at is None or moment - worker.seen_at > away_after(config):
        return "away"
    if worker.unclaimed >= config.unclaimed_limit:
        return "suspect"
    if worker.draining:
        return "draining"
    return "busy" if (_busy(worker) if busy is None else busy) else "idle"


def _busy(worker: Worker) -> bool:
    session = object_session(worker)
    return session is not None and bool(live_attempts(session, worker))
