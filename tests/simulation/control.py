"""The control plane's doors: each request is one transaction on the real functions."""

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from espalier.errors import EspalierError, Unavailable
from espalier.ids import new_id
from espalier.messages import (
    Assignment,
    CheckpointPublished,
    Claim,
    Finish,
    Finished,
    Heartbeat,
    Hello,
    Orders,
    Report,
    Welcome,
)
from espalier.states import JobState
from scheduler import leader
from scheduler.bytes import gc
from scheduler.bytes.blobs import Blobs
from scheduler.lifecycle import assignments, ingest
from scheduler.models import Job, Worker
from scheduler.placing import fleet
from tests.simulation.databases import Bench
from tests.simulation.ledger import Call, Ledger
from tests.simulation.store import AtOnce, MemoryStore
from tests.simulation.world import World

T = TypeVar("T")
#: Seconds between two signs of life of the web process.
BEAT = 40.0


class _WebDied(Exception):
    """The web process was killed in the middle of a request."""


class Control:
    """The web process over one bench. ``ring`` wakes the schedulers, as after every commit."""

    def __init__(self, world: World, bench: Bench, ring: Callable[[], None]) -> None:
        self.world, self.bench, self.ring = world, bench, ring
        self.config = bench.config.model_copy(update={"broker_url": "redis://simulated"})
        self.store = MemoryStore(world, bench.objects)
        self.blobs = Blobs(self.store, self.config)
        self.blobs._pool.shutdown()
        self.blobs._pool = AtOnce()  # type: ignore[assignment]
        self.ledger = Ledger(world, bench)
        self.door_shut_until = -1.0
        self.database_away_until = -1.0
        self._holder = new_id()
        self._beat()

    @property
    def actor(self) -> Any:
        return self.bench.actor

    def _beat(self) -> None:
        if self.world.now >= max(self.door_shut_until, self.database_away_until):
            with self.bench.database.transaction() as session:
                leader.beat(session, leader.WEB, self._holder, BEAT + 5)
        self.world.after(BEAT, self._beat)

    def reach(self) -> None:
        """Raise Unavailable where a request would not be served."""
        if self.world.now < self.door_shut_until:
            raise Unavailable("The control plane cannot be reached.")
        if self.world.now < self.database_away_until:
            raise Unavailable("The database cannot be reached.")

    def transact(self, call: Call | None, work: Callable[[Session], T]) -> T:
        """Run one request. Unavailable while the door is shut, the database away, or it dies."""
        self.reach()
        dies = self.world.chance(0.004)
        try:
            with self.bench.database.transaction() as session:
                found = work(session)
                if dies:
                    session.flush()
                    raise _WebDied
        except _WebDied:
            self.world.fault("web killed in a transaction")
            raise Unavailable("The connection was cut.") from None
        finally:
            if call is None or call.verb not in ("heartbeat", "upload"):
                self.ledger.observe(call)
        return found

    # --- What workers ask -----------------------------------------------------------------

    def _as(self, call: Call, work: Callable[[Session, Worker], T]) -> T:
        return self.transact(call, lambda s: work(s, s.get_one(Worker, call.worker_id)))

    def hello(self, call: Call, message: Hello) -> Welcome:
        def work(session: Session, worker: Worker) -> Welcome:
            welcome = fleet.hello(session, worker, message, self.config)
            for attempt_id in welcome.inherited:
                self.ledger.owner[attempt_id] = (call.worker_id, call.boot_id)
            return welcome

        welcome = self._as(call, work)
        self.ring()
        return welcome

    def heartbeat(self, call: Call, message: Heartbeat) -> Orders:
        return self._as(call, lambda s, w: fleet.heartbeat(s, w, message, self.config))

    def claim(self, call: Call, message: Claim) -> Assignment:
        found = self._as(call, lambda s, w: assignments.claim(s, w, call.attempt_id, message))
        owner = self.ledger.owner.setdefault(call.attempt_id, (call.worker_id, call.boot_id))
        if owner != (call.worker_id, call.boot_id):
            self.ledger.fail("an attempt is claimed by one process", call, owner)
        self.ledger.resumed(found)
        return found

    def report(self, call: Call, message: Report) -> Orders:
        return self._as(call, lambda s, w: ingest.report(s, w, call.attempt_id, message))

    def checkpoint(self, call: Call, message: CheckpointPublished) -> None:
        self._as(call, lambda s, w: ingest.checkpoint(s, w, call.attempt_id, message))

    def finish(self, call: Call, message: Finish) -> Finished:
        self.reach()
        assignments.prepare(
            self.bench.database, self.blobs, call.worker_id, call.attempt_id, message
        )
        found = self._as(
            call, lambda s, w: assignments.finish(s, self.blobs, w, call.attempt_id, message)
        )
        if message.state == "succeeded" and JobState(found.job_state) != JobState.SUCCEEDED:
            self.ledger.fail("a finish that was taken ends the job", call, found)
        self.ring()
        return found

    # --- What people and housekeeping do --------------------------------------------------

    def ask(self, what: str, work: Callable[[Session], T]) -> T | None:
        """A person's request: refused or not, the promises hold."""
        try:
            found = self.transact(Call("", "", "person"), work)
        except EspalierError as error:
            self.world.note(f"{what} refused", error.detail)
            return None
        self.ring()
        return found

    def job(self, session: Session, job_id: str) -> Job:
        return session.get_one(Job, job_id)

    def sweep(self, grace: Any) -> None:
        """Collect garbage. The store may be away meanwhile: another time, then."""
        if self.world.now < self.database_away_until:
            return
        self.ledger.collected = True
        try:
            gc.collect(self.bench.database, self.blobs, grace)
        except Unavailable as error:
            self.world.note("gc gave up", error.detail)
        self.ledger.observe(None)
