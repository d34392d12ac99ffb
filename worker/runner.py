"""Runs attempts: from a ticket to a finished attempt, and nothing left on the disk."""

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from espalier.errors import Conflict, EspalierError, NotFound
from espalier.messages import Assignment, Order, Orders
from espalier.refs import check_name
from worker.attempt import Attempt
from worker.groups import end_remembered
from worker.stop import Stopped, Why
from worker.supervision import GROUP
from worker.tools import Tools

log = logging.getLogger("worker")


class Runner:
    """All attempts of one worker process, a thread each."""

    def __init__(self, tools: Tools, directory: Path, on_drain: Callable[[], None]) -> None:
        self._tools = tools
        self._directory = directory
        self._on_drain = on_drain
        self._lock = threading.Lock()
        self._claiming: set[str] = set()
        self._attempts: dict[str, Attempt] = {}
        self._draining: bool | None = None  # not known before the first orders
        self._stopping: tuple[Why, float | None] | None = None

    def run(self, attempt_id: str) -> None:
        """Answer a ticket. Tickets may be late, repeated or void.

        One for an attempt that runs here starts nothing; it means that there is something to
        hear, and the attempt reports at once.
        """
        check_name(attempt_id, "attempt")
        with self._lock:
            running = self._attempts.get(attempt_id)
            if self._stopping or attempt_id in self._claiming:
                log.info("ticket for %s starts nothing", attempt_id)
                if running:
                    running.hear()
                return
            self._claiming.add(attempt_id)
        try:
            assignment = self._claim(attempt_id)
            if assignment:
                self._run(assignment)
        finally:
            with self._lock:
                self._claiming.discard(attempt_id)
                self._attempts.pop(attempt_id, None)

    def _claim(self, attempt_id: str) -> Assignment | None:
        try:
            return self._tools.control.claim(attempt_id)
        except (Conflict, NotFound) as error:
            log.info("ticket for %s is void: %s", attempt_id, error.detail)
        except EspalierError as error:
            log.warning("attempt %s is not claimed: %s", attempt_id, error.detail)
        return None

    def _run(self, assignment: Assignment) -> None:
        directory = self._directory / check_name(assignment.attempt_id, "attempt")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            attempt = Attempt(assignment, self._tools, directory, self.obey)
            with self._lock:
                self._attempts[assignment.attempt_id] = attempt
                stopping = self._stopping
            if stopping:
                attempt.stop.request(*stopping)
            log.info("attempt %s of %s begins", assignment.attempt_id, assignment.kind)
            attempt.run()
        except Stopped:
            log.info("attempt %s is left unfinished", assignment.attempt_id)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def running(self) -> tuple[str, ...]:
        """Return the ids of the attempts this worker holds."""
        with self._lock:
            return tuple(self._attempts)

    def obey(self, orders: Orders) -> None:
        """Do what the control plane wants.

        A worker that is told to drain ends. One that was draining when it was started (by
        whatever keeps it running) stays, idle, to be there when its owner lets it go on.
        """
        drain = any(order.order == "drain" for order in orders.orders)
        if drain and self._draining is False:
            self._on_drain()
        self._draining = drain
        for order in orders.orders:
            if order.order == "cancel":
                self._cancel(order)

    def _cancel(self, order: Order) -> None:
        with self._lock:
            attempt = self._attempts.get(order.attempt_id or "")
        if attempt and attempt.stop.why < Why.CANCELLED:
            log.info("attempt %s: cancel ordered", order.attempt_id)
            attempt.stop.request(Why.CANCELLED)

    def stop(self, why: Why, within: float | None = None) -> None:
        """Take no more tickets and end every attempt, all of it ``within`` seconds."""
        with self._lock:
            self._stopping = (why, within)
            attempts = list(self._attempts.values())
        for attempt in attempts:
            attempt.stop.request(why, within)


def clear(directory: Path) -> None:
    """End the children that an earlier run of this worker left, and remove its attempts."""
    for leftover in sorted(directory.glob("*/")):
        end_remembered(leftover / GROUP)
        shutil.rmtree(leftover, ignore_errors=True)
