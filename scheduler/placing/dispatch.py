"""One tick of the scheduler: give up what is lost, place what is queued, send the tickets.

The attempt's row is the outbox: it is committed first and published afterwards, and what was
placed and not claimed within ``claim_timeout`` is published again. Of several schedulers one at a
time ticks: see scheduler.leader.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from espalier.errors import EspalierError, Unavailable
from espalier.ids import new_id
from espalier.settings import Settings
from espalier.states import AttemptState, JobState, Reason
from scheduler import leader
from scheduler.db import Database, now
from scheduler.lifecycle import jobs
from scheduler.models import Attempt, Job
from scheduler.placing import demand, needs
from scheduler.placing.placement import place, victims

log = logging.getLogger(__name__)
IDLE_SECONDS = 5.0
#: Seconds after which another scheduler looks again whether it may lead.
FOLLOW_SECONDS = 1.0
#: Jobs placed in one transaction: reports wait for it on SQLite. The next tick follows at once.
BATCH = 100
#: A scheduler that did not tick for so long was away, and so, perhaps, was all the machine.
GAP_SECONDS = 3 * IDLE_SECONDS


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
        self._holder = new_id()
        self._lease = timedelta(seconds=config.lease_seconds)
        self._grace_until: datetime | None = None
        self._looked: datetime | None = None
        self._more = False

    def tick(self) -> float:
        """Do what is due; return the seconds until something may be due again."""
        with self._database.transaction() as session:
            moment = now(session)
            self._notice_gap(moment)
            if not leader.lead(session, self._holder):
                return FOLLOW_SECONDS
            reachable = leader.door_open(session, moment, self._lease)
            if reachable and self._grace_is_over(moment):
                self._expire(session, moment)
            tickets = self._unclaimed(session, moment, reachable)
            tickets += self._place(session, moment)
            tickets += _rings(session, moment)
        self._send(tickets, moment)
        if self._more:
            return 0.0
        with self._database.reading() as session:
            return self._next_due(session)

    def send_again(self) -> None:
        """Let the next tick send all unclaimed tickets: the broker has forgotten them.

        Nobody has to wait for the claim timeout, and none of the forgotten counts against a worker.
        """
        with self._database.transaction() as session:
            session.execute(
                update(Attempt)
                .where(Attempt.state == AttemptState.PLACED, Attempt.published_at.is_not(None))
                .values(published_at=None, published=Attempt.published - 1)
            )

    def forgive(self) -> None:
        """Start the grace anew: the database was away, so nobody could report."""
        self._grace_until = None

    def resign(self) -> None:
        """Let another scheduler lead at once: this one stops."""
        try:
            with self._database.transaction() as session:
                leader.resign(session, self._holder)
        except OperationalError as error:
            log.warning("The database is away; the next scheduler waits a little: %s", error)

    def _notice_gap(self, moment: datetime) -> None:
        """A machine that slept, or a clock that was set, is nobody's silence."""
        gap = max(0.9 * self._lease, timedelta(seconds=GAP_SECONDS))
        if self._looked is not None and not timedelta(0) <= moment - self._looked <= gap:
            log.warning("The clock went from %s to %s: leases get a grace.", self._looked, moment)
            self.forgive()
        self._looked = moment

    def _grace_is_over(self, moment: datetime) -> bool:
        if self._grace_until is None:  # workers may not have been heard for our own absence
            self._grace_until = moment + self._lease
        return moment >= self._grace_until

    def _expire(self, session: Session, moment: datetime) -> None:
        ended = select(Attempt).where(
            Attempt.state == AttemptState.RUNNING,
            or_(
                Attempt.lease_expires_at < moment,
                Attempt.lease_expires_at > moment + 2 * self._lease,  # the clock was set back
            ),
        )
        for attempt in _locked(session, ended):
            silence = (
                f"{attempt.worker.name} has not reported for {self._config.lease_seconds:g} s."
            )
            with _apart(session, attempt.id):
                jobs.lose(session, attempt, Reason.LEASE_LOST, silence)

    def _unclaimed(self, session: Session, moment: datetime, reachable: bool) -> list[Ticket]:
        """Send again what was not claimed; after three tickets give it to somebody else.

        Not while the web process is away: nobody can claim then.
        """
        due = moment - timedelta(seconds=self._config.claim_timeout_seconds)
        placed = select(Attempt).where(
            Attempt.state == AttemptState.PLACED,
            or_(
                Attempt.published_at.is_(None),
                Attempt.published_at <= due,
                Attempt.published_at > moment,
            ),
        )
        tickets = []
        for attempt in _locked(session, placed):
            if reachable and attempt.published >= self._config.unclaimed_limit:
                attempt.worker.unclaimed = self._config.unclaimed_limit
                note = f"{attempt.worker.name} did not claim it in {attempt.published} tickets."
                with _apart(session, attempt.id):
                    jobs.lose(session, attempt, Reason.UNCLAIMED, note)
            else:
                tickets.append(_ticket(attempt, moment))
        return tickets

    def _place(self, session: Session, moment: datetime) -> list[Ticket]:
        needs.judge(session)
        workers = list(demand.capacities(session, moment, self._config))
        running = demand.running(session, moment, [w.worker_id for w in workers])
        queued = demand.candidates(session, moment, workers, running, BATCH)
        placements = place(queued, [w for w in workers if w.free > 0])
        self._more = len(placements) >= BATCH
        tickets = []
        for placement in placements[:BATCH]:
            with _apart(session, placement.job_id):
                attempt = jobs.place(session, placement, moment)
                if attempt is not None:
                    needs.warn(session, moment, attempt.job, attempt.worker)
                    tickets.append(_ticket(attempt, moment))
        placed = {p.job_id for p in placements}
        waiting = [job for job in queued if job.job_id not in placed]
        memory = {w.worker_id: w.memory_bytes for w in workers}
        for victim in victims(waiting, running, memory):
            _preempt(session, victim.attempt_id, victim.job_id, moment)
        return tickets

    def _send(self, tickets: list[Ticket], moment: datetime) -> None:
        """Publish until the broker is away: a frozen one would cost its timeout a ticket."""
        for n, ticket in enumerate(tickets):
            try:
                self._publish(ticket)
            except Unavailable as error:
                unsent = [t.attempt_id for t in tickets[n:]]
                log.warning("%d tickets wait for the broker: %s", len(unsent), error.detail)
                break
        else:
            return
        with self._database.transaction() as session:  # the row stays the outbox
            session.execute(
                update(Attempt)
                .where(
                    Attempt.id.in_(unsent),
                    Attempt.state == AttemptState.PLACED,
                    Attempt.published_at == moment,
                )
                .values(published_at=None, published=Attempt.published - 1)
            )

    def _next_due(self, session: Session) -> float:
        """Seconds until the next lease, claim or backoff ends; at most ``IDLE_SECONDS``."""
        moment = now(session)
        lease = session.scalar(
            select(func.min(Attempt.lease_expires_at)).where(Attempt.state == AttemptState.RUNNING)
        )
        if lease and self._grace_until:
            lease = max(lease, self._grace_until)
        if not leader.door_open(session, moment, self._lease):
            lease = None
        sent = select(func.min(Attempt.published_at), func.count()).where(
            Attempt.state == AttemptState.PLACED
        )
        published, placed = session.execute(sent).one()
        backoff = session.scalar(
            select(func.min(Job.not_before)).where(
                Job.state == JobState.QUEUED,
                Job.pause_requested_at.is_(None),
                Job.not_before > moment,
            )
        )
        claim = timedelta(seconds=self._config.claim_timeout_seconds)
        dues = [lease, published + claim if published else None, backoff]
        # What is due already could not be changed in this tick.
        waits = [(due - moment).total_seconds() if due > moment else 1.0 for due in dues if due]
        if placed and published is None:
            waits.append(1.0)
        return min(max(min(waits, default=IDLE_SECONDS), 0.05), IDLE_SECONDS)


def _locked(session: Session, query: Select[Attempt]) -> list[Attempt]:
    """Return the attempts that nobody else is changing, locked and read anew.

    Whoever changes the others now has something to say: they are looked at in the next tick.
    """
    lock = query.order_by(Attempt.id).with_for_update(of=Attempt, key_share=True, skip_locked=True)
    return list(session.scalars(lock.execution_options(populate_existing=True)))


@contextmanager
def _apart(session: Session, subject: str) -> Iterator[None]:
    """One that cannot be changed must not keep all others from it."""
    try:
        with session.begin_nested():
            yield
    except (EspalierError, IntegrityError):
        log.exception("%s stays as it is for this tick.", subject)


def _ticket(attempt: Attempt, moment: datetime) -> Ticket:
    attempt.published_at, attempt.published = moment, attempt.published + 1
    return Ticket(attempt.worker_id, attempt.job.kind, attempt.id)


def _preempt(session: Session, attempt_id: str, job_id: str, moment: datetime) -> None:
    still = select(Attempt).where(
        Attempt.id == attempt_id,
        Attempt.state == AttemptState.RUNNING,
        Attempt.preempt_requested_at.is_(None),
    )
    for attempt in _locked(session, still):
        jobs.preempt(session, attempt, session.get_one(Job, job_id), moment)


def _rings(session: Session, moment: datetime) -> list[Ticket]:
    """Ring for running attempts that are to end: their workers report at once.

    A ticket for an attempt that runs starts nothing; the order itself comes with the report's
    answer, and comes with the next one all the same if this ticket is lost.
    """
    unheard = (
        select(Attempt)
        .join(Job)
        .where(
            Attempt.state == AttemptState.RUNNING,
            or_(
                Attempt.published_at <= Job.cancel_requested_at,
                Attempt.published_at <= Job.pause_requested_at,
                Attempt.published_at < Attempt.preempt_requested_at,
            ),
        )
    )
    return [_ticket(attempt, moment) for attempt in _locked(session, unheard)]
