"""What a request may use: the database, the store, the bell. Made once per process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

from flask import current_app, request
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy.orm import Session

from espalier.errors import TooMany
from espalier.settings import Settings
from scheduler.bytes.blobs import Blobs
from scheduler.db import Database
from scheduler.wake import Waker
from web.mirror import Mirror, Prefetcher

#: Seconds after its last look that somebody counts as watching.
WATCH_SECONDS = 15.0
#: Sign-ins tried, and tokens refused, from one address.
SIGN_INS, REFUSALS = parse("20/minute"), parse("120/minute")


class Watched:
    """The jobs that somebody looks at: their workers report more often."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._lock = Lock()

    def look(self, job_id: str) -> None:
        """Note that somebody sees this job now."""
        moment = time.monotonic()
        with self._lock:
            self._until = {job: end for job, end in self._until.items() if end > moment}
            self._until[job_id] = moment + WATCH_SECONDS

    def watched(self, job_id: str) -> bool:
        return self._until.get(job_id, 0.0) > time.monotonic()


class Throttle:
    """Limits by address, kept in this process."""

    def __init__(self) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def count(self, what: str, limit: RateLimitItem) -> None:
        """Count one more of ``what`` from the request's address. Raises TooMany."""
        address = request.remote_addr or "?"
        if not self._limiter.hit(limit, what, address):
            error = TooMany(f"Too many tries from {address}.", hint="Wait a minute.")
            error.retry_after = limit.get_expiry()
            raise error


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    database: Database
    blobs: Blobs
    waker: Waker | None
    mirror: Mirror
    prefetcher: Prefetcher
    watched: Watched = field(default_factory=Watched)
    throttle: Throttle = field(default_factory=Throttle)

    @contextmanager
    def committing(self) -> Iterator[Session]:
        """A transaction that may give the scheduler work: it is woken after the commit."""
        with self.database.transaction() as session:
            yield session
        if self.waker is not None:
            self.waker.wake()


def services() -> Services:
    """Return the services of the app that handles this request."""
    found: Services = current_app.extensions["espalier"]
    return found
