"""Runs attempts: from a ticket to a finished attempt, and nothing left on the disk."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from espalier.errors import Conflict, EspalierError, NotFound
from espalier.messages import Assignment, Failure, Order, Orders
from espalier.refs import check_name
from espalier.states import Reason
from worker.attempt import Attempt, disk_full
from worker.control import patiently
from worker.disk import is_full
from worker.ledger import Ledger
from worker.outputs import failing, finish
from worker.salvage import Salvage
from worker.stop import Stop, Stopped, Why
from worker.tools import Tools

log = logging.getLogger("worker")


class Work(Protocol):
    """An attempt that runs here, or one that is finished for an earlier process."""

    stop: Stop
    over: bool

    def run(self) -> None: ...
    def hear(self) -> None: ...


class Runner:
    """All attempts of one worker process, a thread each."""

    def __init__(self, tools: Tools, directory: Path, on_drain: Callable[[], None]) -> None:
        self._tools = tools
        self._directory = directory
        self._on_drain = on_drain
        self._lock = threading.Lock()
        self._claiming: dict[str, Stop] = {}
        self._attempts: dict[str, Work] = {}
        self._salvages: list[threading.Thread] = []
        self._draining: bool | None = None  # not known before the first orders
        self._stopping: tuple[Why, float | None] | None = None

    def run(self, attempt_id: str) -> None:
        """Answer a ticket. Tickets may be late, repeated or void.

        One for an attempt that runs here starts nothing; it means that there is something to
        hear, and the attempt reports at once.
        """
        check_name(attempt_id, "attempt")
        stop = Stop()
        with self._lock:
            running = self._attempts.get(attempt_id)
            if self._stopping or attempt_id in self._claiming:
                log.info("ticket for %s starts nothing", attempt_id)
                if running:
                    running.hear()
                return
            self._claiming[attempt_id] = stop
        try:
            assignment = self._claim(attempt_id, stop)
            if assignment:
                self._run(assignment, stop)
        except Stopped:
            log.info("attempt %s is not begun", attempt_id)
        finally:
            self._forget(attempt_id)

    def _claim(self, attempt_id: str, stop: Stop) -> Assignment | None:
        """Claim until there is an answer: the first question may have arrived."""
        try:
            return patiently(
                lambda: self._tools.control.claim(attempt_id), f"Claim {attempt_id}", stop.wait
            )
        except (Conflict, NotFound) as error:
            log.info("ticket for %s is void: %s", attempt_id, error.detail)
        except EspalierError as error:
            log.warning("attempt %s is not claimed: %s", attempt_id, error.detail)
        return None

    def _run(self, assignment: Assignment, stop: Stop) -> None:
        directory = self._directory / check_name(assignment.attempt_id, "attempt")
        boot_id = self._tools.control.boot_id
        try:
            ledger = Ledger.begin(directory, assignment, boot_id, time.time())
            attempt = Attempt(assignment, self._tools, ledger, self.obey)
        except OSError as error:
            self._refuse(assignment, error, stop)
            Ledger.discard(directory)
            return
        log.info("attempt %s of %s begins", assignment.attempt_id, assignment.kind)
        self._work(attempt, ledger)

    def _refuse(self, assignment: Assignment, error: OSError, stop: Stop) -> None:
        """End an attempt that has no place on the disk."""
        failure = Failure(code=Reason.CODE_ERROR, message=f"The worker failed: {error}")
        if is_full(error):
            failure = disk_full(error, shutil.disk_usage(self._directory.parent).free)
        ending = failing(self._tools.control.boot_id, failure)
        finish(self._tools.control, assignment.attempt_id, ending, stop.wait)

    def _work(self, work: Work, ledger: Ledger) -> None:
        with self._lock:
            self._attempts[ledger.attempt_id] = work
            stopping = self._stopping
        if stopping:
            work.stop.request(*stopping)
        try:
            work.run()
        except Stopped:
            log.info("attempt %s is left unfinished", ledger.attempt_id)
        finally:
            if work.over:
                ledger.remove()
            else:
                log.info("attempt %s is kept for the worker's next start", ledger.attempt_id)

    def _forget(self, attempt_id: str) -> None:
        with self._lock:
            self._claiming.pop(attempt_id, None)
            self._attempts.pop(attempt_id, None)

    # --- What an earlier process left -----------------------------------------------------

    def salvage(self, ledger: Ledger) -> None:
        """Finish an inherited attempt, beside whatever else runs."""
        with self._lock:
            self._claiming[ledger.attempt_id] = Stop()
        thread = threading.Thread(
            target=self._salvage, args=(ledger,), name=f"salvage-{ledger.attempt_id}", daemon=True
        )
        self._salvages.append(thread)
        thread.start()

    def _salvage(self, ledger: Ledger) -> None:
        try:
            self._work(Salvage(ledger, self._tools, self.obey), ledger)
        except Exception:  # it stays on the disk
            log.exception("attempt %s is not finished", ledger.attempt_id)
        finally:
            self._forget(ledger.attempt_id)

    def join(self) -> None:
        """Wait until what an earlier process left is finished, or has to wait for the next."""
        for thread in self._salvages:
            thread.join()

    # --- Orders ---------------------------------------------------------------------------

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
                self._end(order, Why.CANCELLED)
            elif order.order == "pause":
                self._end(order, Why.PAUSED)

    def _end(self, order: Order, why: Why) -> None:
        with self._lock:
            attempt = self._attempts.get(order.attempt_id or "")
        if attempt and attempt.stop.why < why:
            log.info("attempt %s: %s ordered", order.attempt_id, order.order)
            attempt.stop.request(why)

    def stop(self, why: Why, within: float | None = None) -> None:
        """Take no more tickets and end every attempt, all of it ``within`` seconds."""
        with self._lock:
            self._stopping = (why, within)
            stops = [work.stop for work in self._attempts.values()]
            stops += self._claiming.values()
        for stop in stops:
            stop.request(why, within)
