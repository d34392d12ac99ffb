"""Publishes checkpoints while the child goes on: training never waits for an upload.

Where uploads are slower than checkpoints, the latest wins; the last one is never dropped. What is
announced is written down first, after all that led to it, and reaches the control plane after it:
the curve up to a published checkpoint has no holes, whenever this process or its disk is lost.
"""

import logging
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from espalier.errors import EspalierError, LeaseLost
from espalier.messages import CheckpointEvent, CheckpointPublished
from espalier.transfer import Transfer, scan
from worker.control import Control, patiently
from worker.ledger import Ledger
from worker.reporter import Reporter
from worker.stop import Stop, Stopped, Why

log = logging.getLogger("worker")

#: Seconds between two looks at whether the reports before a checkpoint have arrived.
_LOOK_SECONDS = 0.05


class CheckpointPublisher:
    """One attempt's checkpoints, hashed, uploaded, announced and removed, one at a time."""

    def __init__(
        self,
        control: Control,
        transfer: Transfer,
        ledger: Ledger,
        stop: Stop,
        reporter: Reporter,
        lost: Callable[[EspalierError], None],
    ) -> None:
        """``lost`` ends the attempt."""
        self._control = control
        self._transfer = transfer
        self._ledger = ledger
        self._stop = stop
        self._reporter = reporter
        self._lost = lost
        self._changed = threading.Condition()
        self._next: tuple[CheckpointEvent, int] | None = None
        self._closing = False
        self._thread = threading.Thread(
            target=self._run, name=f"publish-{ledger.attempt_id}", daemon=True
        )
        self._thread.start()

    def publish(self, event: CheckpointEvent) -> None:
        """Take a checkpoint; it replaces one that still waits."""
        before = self._reporter.settle()
        self._ledger.announced(event)
        with self._changed:
            passed, self._next = self._next, (event, before)
            self._changed.notify_all()
        if passed:
            log.info("checkpoint %d is passed over for %d", passed[0].step, event.step)
            shutil.rmtree(passed[0].directory, ignore_errors=True)

    def close(self) -> None:
        """Wait until the last checkpoint is published or the attempt's stop forbids it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _take(self) -> tuple[CheckpointEvent, int] | None:
        with self._changed:
            while not self._next and not self._closing:
                self._changed.wait()
            taken, self._next = self._next, None
            return taken

    def _run(self) -> None:
        while taken := self._take():
            event, before = taken
            told = partial(self._reporter.has_told, before)
            try:
                publish(self._control, self._transfer, self._ledger, event, told, self._stop)
            except Stopped:
                log.info("checkpoint %d is not published: the attempt ends", event.step)
                continue  # it stays on the disk, for the worker's next start
            except LeaseLost as error:
                self._lost(error)
                continue
            except (EspalierError, OSError) as error:
                # The next checkpoint may fare better, and the attempt goes on without this one.
                log.warning("checkpoint %d is not published: %s", event.step, error)
            self._ledger.published(event)
            shutil.rmtree(event.directory, ignore_errors=True)


def publish(
    control: Control,
    transfer: Transfer,
    ledger: Ledger,
    event: CheckpointEvent,
    told: Callable[[], bool],
    stop: Stop,
) -> None:
    """Hash, upload and announce a checkpoint; a cancelled attempt does so still.

    ``told`` says whether the reports that led to it have arrived: another attempt that went on
    from it would never send them again. Raises LeaseLost, what it is refused with, OSError, and
    Stopped.
    """
    directory = Path(event.directory)
    published = CheckpointPublished(boot_id=control.boot_id, step=event.step, files=scan(directory))

    def send() -> None:
        transfer.push(directory, published.files, lambda _: stop.check(Why.CANCELLED))
        while not told():
            stop.wait(_LOOK_SECONDS, Why.CANCELLED)
        control.checkpoint(ledger.attempt_id, published)

    patiently(send, f"Checkpoint {event.step}", lambda s: stop.wait(s, Why.CANCELLED))
    log.info("checkpoint %d is published", event.step)
