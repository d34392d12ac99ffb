"""One tick of the scheduler: give up what is lost, place what is queued, send the tickets.

The attempt's row is the outbox: it is committed first and published afterwards, and what was
placed and not claimed within ``claim_timeout`` is published again. Two schedulers at once do no
harm: on PostgreSQL one tick at a time holds an advisory lock, on SQLite the write lock.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from espalier.errors import Unavailable
from espalier.settings import Settings
from espalier.states import ATTEMPT_LIVE, AttemptState, JobState, Reason
from scheduler import fleet, jobs
from scheduler.db import Database, now
from scheduler.models import Attempt, Job, Worker
from scheduler.placement import Candidate, Capacity, place

log = logging.getLogger(__name__)
TICK_LOCK = 7265737
IDLE_SECONDS = 5.0
#: A worker that let tickets lie is tried again after this many claim timeouts.
SUSPECT_TIMEOUTS = 10


@dataclass(frozen=True, slots=True)
class Ticket:
    """A wake-up call for a worker: losable and repeatable."""

    worker_id: str
    kind: str
    attempt_id: str


Publish = Callable[[Ticket], None]


class Dispatcher:
    """Holds no state but the grace after its start: everything else is in SQL."""

    def __init__(self, database: Database, publish: Publish, config: Settings) -> None:
        self._database = database
        self._publish = publish
        self._config = config
        self._grace_until: datetime | None = None

    def tick(self) -> float:
        """Do what is due; return the seconds until something may be due again."""
        with self._database.transaction() as session:
            if not _alone(session):
                return 1.0
            moment = now(session)
            if self._grace_until is None:  # workers may not have been heard for our own absence
                self._grace_until = moment + timedelta(seconds=self._config.lease_seconds)
            if moment >= self._grace_until:
                self._expire(session, moment)
            tickets = self._unclaimed(session, moment)
            tickets += self._place(session, moment)
            tickets += _cancelled(session, moment)
        self._send(tickets)
        with self._database.reading() as session:
            return self._next_due(session)

    def forgive(self) -> None:
        """Start the grace anew: the database was away, so nobody could report."""
        self._grace_until = None

    def _expire(self, session: Session, moment: datetime) -> None:
        ended = select(Attempt).where(
            Attempt.state == AttemptState.RUNNING, Attempt.lease_expires_at < moment
        )
        for attempt in session.scalars(ended.with_for_update(skip_locked=True)):
            silence = (
                f"{attempt.worker.name} has not reported for {self._config.lease_seconds:g} s."
            )
            jobs.lose(session, attempt, Reason.LEASE_LOST, silence)

    def _unclaimed(self, session: Session, moment: datetime) -> list[Ticket]:
        """Send again what was not claimed; after three tickets give it to somebody else."""
        due = moment - timedelta(seconds=self._config.claim_timeout_seconds)
        placed = select(Attempt).where(Attempt.state == AttemptState.PLACED)
        tickets = []
        for attempt in session.scalars(placed.with_for_update(skip_locked=True)):
            if attempt.published_at is not None and attempt.published_at > due:
                continue
            if attempt.published >= self._config.unclaimed_limit:
                attempt.worker.unclaimed = self._config.unclaimed_limit
                note = f"{attempt.worker.name} did not claim it in {attempt.published} tickets."
                jobs.lose(session, attempt, Reason.UNCLAIMED, note)
            else:
                tickets.append(_ticket(attempt, moment))
        return tickets

    def _place(self, session: Session, moment: datetime) -> list[Ticket]:
        workers = list(self._capacities(session, moment))
        if not workers:
            return []
        queued = _candidates(session, moment)
        tickets = []
        for placement in place(queued, workers):
            attempt = jobs.place(session, placement, moment)
            if attempt is not None:
                tickets.append(_ticket(attempt, moment))
        return tickets

    def _capacities(self, session: Session, moment: datetime) -> Iterable[Capacity]:
        heard = moment - fleet.away_after(self._config)
        patience = timedelta(seconds=SUSPECT_TIMEOUTS * self._config.claim_timeout_seconds)
        held = _held(session)
        alive = select(Worker).where(
            Worker.seen_at > heard, Worker.draining.is_(False), Worker.revoked_at.is_(None)
        )
        for worker in session.scalars(alive):
            free = worker.slots - held.get(worker.id, 0)
            suspect = worker.unclaimed >= self._config.unclaimed_limit
            if free > 0 and not (suspect and moment - _last_placed(session, worker) < patience):
                yield Capacity(worker.id, worker.name, free)

    def _send(self, tickets: list[Ticket]) -> None:
        unsent = []
        for ticket in tickets:
            try:
                self._publish(ticket)
            except Unavailable as error:
                log.warning("Ticket %s waits: %s", ticket.attempt_id, error.detail)
                unsent.append(ticket.attempt_id)
        if unsent:  # the row stays the outbox: the next tick sends it again
            with self._database.transaction() as session:
                for attempt_id in unsent:
                    attempt = session.get_one(Attempt, attempt_id)
                    if attempt.state == AttemptState.PLACED:
                        attempt.published_at, attempt.published = None, attempt.published - 1

    def _next_due(self, session: Session) -> float:
        """Seconds until the next lease, claim or backoff ends; at most ``IDLE_SECONDS``."""
        moment = now(session)
        lease = session.scalar(
            select(func.min(Attempt.lease_expires_at)).where(Attempt.state == AttemptState.RUNNING)
        )
        sent = select(func.min(Attempt.published_at), func.count()).where(
            Attempt.state == AttemptState.PLACED
        )
        published, placed = session.execute(sent).one()
        backoff = session.scalar(
            select(func.min(Job.not_before)).where(
                Job.state == JobState.QUEUED, Job.not_before > moment
            )
        )
        claim = timedelta(seconds=self._config.claim_timeout_seconds)
        dues = [lease, published + claim if published else None, backoff]
        waits = [(due - moment).total_seconds() for due in dues if due is not None]
        if placed and published is None:
            waits.append(1.0)
        return min(max(min(waits, default=IDLE_SECONDS), 0.05), IDLE_SECONDS)


def _alone(session: Session) -> bool:
    if session.get_bind().dialect.name != "postgresql":
        return True  # every transaction here holds SQLite's write lock
    lock = text("SELECT pg_try_advisory_xact_lock(:key)")
    return bool(session.scalar(lock, {"key": TICK_LOCK}))


def _ticket(attempt: Attempt, moment: datetime) -> Ticket:
    attempt.published_at, attempt.published = moment, attempt.published + 1
    return Ticket(attempt.worker_id, attempt.job.kind, attempt.id)


def _cancelled(session: Session, moment: datetime) -> list[Ticket]:
    """Ring for running attempts that are to be cancelled: their workers report at once.

    A ticket for an attempt that runs starts nothing; the order itself comes with the report's
    answer, and comes with the next one all the same if this ticket is lost.
    """
    unheard = (
        select(Attempt)
        .join(Job)
        .where(
            Attempt.state == AttemptState.RUNNING,
            Job.cancel_requested_at.is_not(None),
            Attempt.published_at <= Job.cancel_requested_at,
        )
    )
    return [_ticket(attempt, moment) for attempt in session.scalars(unheard)]


def _held(session: Session) -> dict[str, int]:
    """Return worker → attempts that it was given and that have not ended."""
    live = select(Attempt.worker_id, func.count()).where(Attempt.state.in_(ATTEMPT_LIVE))
    rows = session.execute(live.group_by(Attempt.worker_id))
    return dict(rows.all())


def _last_placed(session: Session, worker: Worker) -> datetime:
    query = select(func.max(Attempt.placed_at)).where(Attempt.worker_id == worker.id)
    return session.scalar(query) or worker.created_at


def _candidates(session: Session, moment: datetime) -> list[Candidate]:
    """Queued jobs that no attempt holds and whose backoff is over, best first."""
    live = select(Attempt.job_id).where(Attempt.state.in_(ATTEMPT_LIVE))
    ready = (
        select(Job.id, Job.priority, Job.queued_at)
        .where(
            Job.state == JobState.QUEUED,
            Job.cancel_requested_at.is_(None),
            (Job.not_before.is_(None)) | (Job.not_before <= moment),
            Job.id.not_in(live),
        )
        .order_by(Job.priority.desc(), Job.queued_at, Job.id)
        .limit(1000)
    )
    rows = session.execute(ready).all()
    lost = select(Attempt.job_id, Attempt.worker_id).where(
        Attempt.job_id.in_([r.id for r in rows]), Attempt.state == AttemptState.LOST
    )
    avoid: dict[str, set[str]] = {}
    for job_id, worker_id in session.execute(lost):
        avoid.setdefault(job_id, set()).add(worker_id)
    return [Candidate(r.id, r.priority, r.queued_at, frozenset(avoid.get(r.id, ()))) for r in rows]
