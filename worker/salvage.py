"""What an earlier process of this worker left on the disk: told, published and finished.

Nothing runs for such an attempt any more. Its reports go out under their old numbers, a
checkpoint that was complete is published, and outputs that were complete make the job succeed;
else the attempt ends as what it was: of a worker that crashed. Everything here may be interrupted
anywhere and begun again by the next start.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from espalier.errors import EspalierError, Forbidden, LeaseLost, Unauthorized
from espalier.messages import Failure, Finish, NoticeEvent, Orders
from espalier.states import Reason
from worker import machine, publisher
from worker.groups import end_remembered
from worker.ledger import Ledger
from worker.outputs import failing, finish, publish
from worker.reporter import Handlers, Reporter
from worker.spool import Spool
from worker.stop import Stop, Stopped, Why
from worker.supervision import GROUP
from worker.tools import Failed, Tools

log = logging.getLogger("worker")


def leftovers(attempts: Path) -> list[Ledger]:
    """End the children that an earlier process left, and return the attempts that it held."""
    found = []
    for directory in sorted(attempts.glob("*/")):
        end_remembered(directory / GROUP)
        (directory / GROUP).unlink(missing_ok=True)
        ledger = Ledger.find(directory)
        if ledger is None:
            Ledger.discard(directory)
        else:
            found.append(ledger)
    return found


class Salvage:
    """An inherited attempt. Whether its directory may go is in ``over``."""

    def __init__(self, ledger: Ledger, tools: Tools, on_orders: Callable[[Orders], None]) -> None:
        self.stop = Stop()
        self.over = False
        self._ledger = ledger
        self._tools = tools
        self._reporter = Reporter(
            tools.control,
            ledger.attempt_id,
            Spool(ledger.spool, tools.spool_bytes),
            Handlers(orders=on_orders, lost=self._lost),
            ledger.owner.report_seconds,
        )

    def run(self) -> None:
        """Publish and finish. Raises Stopped when that may not or can not be."""
        wait = partial(self.stop.wait, tolerated=Why.CANCELLED)
        self._reporter.start()
        try:
            self._checkpoint()
            ending = self._outcome()
            self._reporter.flush(wait)
            self.stop.check(Why.CANCELLED)
            finish(self._tools.control, self._ledger.attempt_id, ending, wait)
            self.over = True
        finally:
            self._reporter.close()

    def hear(self) -> None:
        """Report now, and so hear of orders."""
        self._reporter.hurry()

    def _lost(self, error: EspalierError) -> None:
        if not self.over:
            log.warning("attempt %s is lost: %s", self._ledger.attempt_id, error.detail)
        self.over = self.over or not isinstance(error, Unauthorized | Forbidden)
        self.stop.request(Why.LEASE_LOST)

    def _checkpoint(self) -> None:
        event = self._ledger.checkpoint
        if event is None or not Path(event.directory).is_dir():
            return
        tools = self._tools
        told = partial(self._reporter.has_told, self._reporter.settle())
        try:
            publisher.publish(tools.control, tools.transfer, self._ledger, event, told, self.stop)
        except LeaseLost as error:
            self._lost(error)
            raise Stopped from error
        except (EspalierError, OSError) as error:
            log.warning("checkpoint %d is not published: %s", event.step, error)
        self._ledger.published(event)

    def _outcome(self) -> Finish:
        """Return how it ended; the outputs of a success are uploaded."""
        boot_id, known = self._tools.control.boot_id, self._ledger.finish
        if self._ledger.outputs is not None and (known is None or known.state == "succeeded"):
            return self._published()
        if known is not None:
            return known.model_copy(update={"boot_id": boot_id})
        failure = crashed(self._ledger.owner.began)
        self._say(failure.message)
        return failing(boot_id, failure)

    def _published(self) -> Finish:
        boot_id = self._tools.control.boot_id
        self._say("The worker was started again: it publishes the outputs that were complete.")
        try:
            made = publish(
                self._ledger.outputs or (), self._tools.transfer, self._reporter, self.stop
            )
        except Failed as fault:
            return failing(boot_id, fault.failure)
        except Stopped:
            if self.stop.why is not Why.CANCELLED:
                raise
            return Finish(boot_id=boot_id, state="cancelled", reason=Reason.CANCELLED)
        return Finish(boot_id=boot_id, state="succeeded", outputs=made)

    def _say(self, message: str) -> None:
        log.info("attempt %s: %s", self._ledger.attempt_id, message)
        self._reporter.event(NoticeEvent(level="warning", message=message, time=time.time()))


def crashed(began: float) -> Failure:
    """Return why an attempt that began then (seconds of the epoch) has ended without a word."""
    panic = machine.panic_since(began)
    if panic is not None:
        return Failure(
            code=Reason.KERNEL_PANIC,
            message=f"The machine fell over while the job ran: {panic}",
            hint="It goes on from its last checkpoint. If it happens again, lower batch_size or"
            " ESPALIER_MEMORY_LIMIT_BYTES on this worker, and bring macOS up to date.",
        )
    what = "machine was" if psutil.boot_time() > began else "worker's process ended and was"
    return Failure(
        code=Reason.WORKER_CRASHED,
        message=f"The {what} started again while the job ran.",
        hint="It goes on from its last checkpoint; the worker's own log may say more.",
    )
