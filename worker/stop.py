"""Why an attempt has to end before its work is done."""

import threading
import time
from collections.abc import Callable
from enum import IntEnum


class Why(IntEnum):
    """Reasons to stop; a higher one overrides a lower one."""

    NOT = 0
    WORKER_STOPPED = 1  # SIGTERM: checkpoint, end, let another worker go on
    PAUSED = 2  # by a person or for another job: checkpoint and end, the job goes on later
    CANCELLED = 3  # by a person: checkpoint and end
    KILLED = 4  # a second SIGTERM: end at once
    LEASE_LOST = 5  # the attempt is another worker's: end at once, publish nothing


class Stopped(Exception):
    """Raised where an attempt's own work is interrupted."""


class Stop:
    """One attempt's stop: requested by any thread, obeyed by all of the attempt's threads.

    What still has to be done after a request (a last checkpoint, the finish) tolerates that
    reason, and is interrupted by a higher one or by the deadline.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watchers: list[Callable[[], None]] = []
        self._deadline = float("inf")
        self.why = Why.NOT

    def request(self, why: Why, within: float | None = None) -> None:
        """Ask the attempt to end, all of it ``within`` seconds if given."""
        with self._changed:
            self.why = max(self.why, why)
            if within is not None:
                self._deadline = min(self._deadline, time.monotonic() + within)
            watchers = list(self._watchers)
            self._changed.notify_all()
        for watcher in watchers:
            watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` at each request from now on."""
        with self._changed:
            self._watchers.append(watcher)

    def check(self, tolerated: Why = Why.NOT) -> None:
        """Raise Stopped for a reason above ``tolerated``, or when time is up."""
        if self.why > tolerated or time.monotonic() >= self._deadline:
            raise Stopped

    def wait(self, seconds: float, tolerated: Why = Why.NOT) -> None:
        """Sleep, and raise Stopped as soon as there is a reason to."""
        until = time.monotonic() + seconds
        with self._changed:
            while True:
                self.check(tolerated)
                left = min(until, self._deadline) - time.monotonic()
                if left <= 0 and time.monotonic() >= until:
                    return
                self._changed.wait(max(left, 0.0))
