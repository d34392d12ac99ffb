"""Publishes checkpoints while the child goes on: training never waits for an upload.

Where uploads are slower than checkpoints, the latest wins; the last one is never dropped.
"""

import logging
import shutil
import threading
from pathlib import Path

from espalier.errors import Conflict, EspalierError
from espalier.messages import CheckpointEvent, CheckpointPublished
from espalier.transfer import Transfer, scan
from worker.control import Control, patiently
from worker.stop import Stop, Stopped, Why

log = logging.getLogger("worker")


class CheckpointPublisher:
    """One attempt's checkpoints, hashed, uploaded, announced and removed, one at a time."""

    def __init__(self, control: Control, transfer: Transfer, attempt_id: str, stop: Stop) -> None:
        self._control = control
        self._transfer = transfer
        self._attempt_id = attempt_id
        self._stop = stop
        self._changed = threading.Condition()
        self._next: CheckpointEvent | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"publish-{attempt_id}", daemon=True)
        self._thread.start()

    def publish(self, event: CheckpointEvent) -> None:
        """Take a checkpoint; it replaces one that still waits."""
        with self._changed:
            passed, self._next = self._next, event
            self._changed.notify_all()
        if passed:
            log.info("checkpoint %d is passed over for %d", passed.step, event.step)
            shutil.rmtree(passed.directory, ignore_errors=True)

    def close(self) -> None:
        """Wait until the last checkpoint is published or the attempt's stop forbids it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _take(self) -> CheckpointEvent | None:
        with self._changed:
            while not self._next and not self._closing:
                self._changed.wait()
            event, self._next = self._next, None
            return event

    def _run(self) -> None:
        while event := self._take():
            try:
                self._publish(event)
            except Stopped:
                log.info("checkpoint %d is not published: the attempt ends", event.step)
            except Conflict:
                self._stop.request(Why.LEASE_LOST)
            except (EspalierError, OSError) as error:
                # The next checkpoint may fare better, and the attempt goes on without this one.
                log.warning("checkpoint %d is not published: %s", event.step, error)
            finally:
                shutil.rmtree(event.directory, ignore_errors=True)

    def _publish(self, event: CheckpointEvent) -> None:
        directory = Path(event.directory)
        published = CheckpointPublished(
            boot_id=self._control.boot_id, step=event.step, files=scan(directory)
        )

        def send() -> None:
            self._transfer.push(directory, published.files, self._check)
            self._control.checkpoint(self._attempt_id, published)

        patiently(send, f"Checkpoint {event.step}", self._wait)
        log.info("checkpoint %d is published", event.step)

    def _check(self, moved: int) -> None:
        del moved
        self._stop.check(Why.CANCELLED)

    def _wait(self, seconds: float) -> None:
        self._stop.wait(seconds, Why.CANCELLED)
