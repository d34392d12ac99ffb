"""Workers: how they join, say hello, are heard of, and are put aside."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, object_session

from espalier.errors import Conflict, LeaseLost, Unavailable
from espalier.messages import Heartbeat, Hello, Orders, Welcome
from espalier.queue import queue_for
from espalier.refs import check_name
from espalier.settings import Settings
from espalier.states import ATTEMPT_LIVE, AttemptState, Reason
from scheduler import access
from scheduler.access import Actor
from scheduler.db import now
from scheduler.events import record
from scheduler.lifecycle import ingest, jobs
from scheduler.models import Attempt, Worker
from scheduler.placing import holdings

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
    """A worker process has started: what its last process held is passed on or given back.

    Said again by the same process it changes nothing and gets the same answer. Raises Conflict
    while another machine is at work under this name, Unavailable without a broker.
    """
    if not config.broker_url:
        raise Unavailable("The control plane has no broker: set ESPALIER_BROKER_URL.")
    held = _held_by(message)
    attempts = _lock(session, worker, held)
    moment = now(session)
    if worker.boot_id != message.boot_id:
        _refuse_a_second(worker, message, moment, config)
        worker.boot_id, worker.started_at = message.boot_id, moment
        same = worker.installation in (None, message.installation)
        worker.installation = message.installation
        _recover(session, worker, attempts, held if same else {})
    worker.machine = message.machine.model_dump(mode="json")
    worker.slots, worker.seen_at, worker.unclaimed = message.slots, moment, 0
    shares = message.shares_url is not None and message.shares_key is not None
    worker.shares_url = message.shares_url if shares else None
    worker.shares_key = message.shares_key if shares else None
    holdings.replace(session, worker, message.blobs)
    return Welcome(
        worker_id=worker.id,
        name=worker.name,
        queue=queue_for(worker.id),
        broker_url=config.broker_url,
        lease_seconds=config.lease_seconds,
        report_seconds=config.report_seconds,
        inherited=_inherited(attempts, held, message.boot_id),
    )


def _held_by(message: Hello) -> dict[str, set[str]]:
    """Return attempt → the processes that may have held it last.

    More than one where a process that inherited it ended before it could write that down.
    """
    held: dict[str, set[str]] = {}
    for item in message.held:
        held.setdefault(item.attempt_id, set()).add(item.boot_id)
    return held


def _lock(session: Session, worker: Worker, held: Iterable[str]) -> list[Attempt]:
    """Return the worker's live and held attempts, locked, and lock the worker after them.

    In the order in which reports lock them: the other could lock each other out.
    """
    concerned = (
        select(Attempt)
        .where(
            Attempt.worker_id == worker.id,
            Attempt.state.in_(ATTEMPT_LIVE) | Attempt.id.in_(list(held)),
        )
        .order_by(Attempt.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    attempts = list(session.scalars(concerned))
    session.refresh(worker, with_for_update=True)
    return attempts


def _refuse_a_second(worker: Worker, message: Hello, moment: datetime, config: Settings) -> None:
    """Raise Conflict when another machine was at work under this name a moment ago.

    Another machine is another data directory, or a copy of it on another host. Two processes in
    one directory exclude each other by a lock.
    """
    if worker.seen_at is None or not worker.installation or not message.installation:
        return
    host, silence = worker.machine.get("hostname"), moment - worker.seen_at
    if (worker.installation, host) == (message.installation, message.machine.hostname):
        return
    if silence > away_after(config):
        return
    started = f"{worker.started_at:%Y-%m-%d %H:%M:%S} UTC" if worker.started_at else "a while"
    rest = (away_after(config) - silence).total_seconds()
    raise Conflict(
        f"{worker.name} is at work already: on {host} since {started}, heard of"
        f" {silence.total_seconds():.0f} s ago. This is {message.machine.hostname}.",
        hint="Join this machine under a name of its own, or stop the other; when that one is gone"
        f" for good, start this one again in {rest + 1:.0f} s.",
    )


def _recover(
    session: Session, worker: Worker, attempts: Iterable[Attempt], held: Mapping[str, set[str]]
) -> None:
    """Nothing of the old process runs any more: pass on what it left on its disk.

    Unclaimed tickets are sent again; what is not on the disk is given up.
    """
    for attempt in attempts:
        if attempt.state == AttemptState.PLACED:
            attempt.published_at = None
        elif attempt.boot_id in held.get(attempt.id, ()) and _pass_on(session, worker, attempt):
            continue
        elif attempt.state == AttemptState.RUNNING:
            text = f"{worker.name} ended without a word and was started again."
            jobs.lose(session, attempt, Reason.WORKER_CRASHED, text)


def _pass_on(session: Session, worker: Worker, attempt: Attempt) -> bool:
    """Let the worker's new process finish an attempt that runs, or may be adopted again."""
    before, attempt.boot_id = attempt.boot_id, worker.boot_id
    try:
        jobs.hold(session, worker, attempt.id, worker.boot_id or "")
    except LeaseLost:
        attempt.boot_id = before
        return False
    moment = now(session)
    jobs.extend_lease(attempt, moment)
    text = f"{worker.name} was started again; it publishes what the attempt left on its disk."
    record(session, moment, attempt.job, "inherited", text, attempt=attempt)
    return True


def _inherited(attempts: Iterable[Attempt], held: Iterable[str], boot_id: str) -> tuple[str, ...]:
    known = set(held)
    return tuple(
        a.id
        for a in attempts
        if a.id in known and (a.state, a.boot_id) == (AttemptState.RUNNING, boot_id)
    )


def heartbeat(session: Session, worker: Worker, message: Heartbeat, config: Settings) -> Orders:
    """An idle worker is alive; one that holds attempts hears orders here as well."""
    if worker.boot_id != message.boot_id:
        raise Conflict(f"{worker.name} was started elsewhere since: this process must stop.")
    if message.blobs is not None or message.added or message.removed:
        session.refresh(worker, with_for_update=True)  # the same may be told twice at once
        if message.blobs is not None:
            holdings.replace(session, worker, message.blobs)
        holdings.change(session, worker, message.added, message.removed)
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
