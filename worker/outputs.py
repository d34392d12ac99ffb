"""What an attempt made, into the store: hashed, uploaded, and described for its finish."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from espalier.errors import EspalierError
from espalier.messages import OutputEvent, OutputManifest, ProgressEvent
from espalier.states import Reason
from espalier.transfer import Transfer, scan
from worker.control import patiently
from worker.reporter import Reporter
from worker.stop import Stop, Why
from worker.tools import failed

#: Seconds between two progress events of a transfer.
_PROGRESS_SECONDS = 1.0


def publish(
    outputs: Sequence[OutputEvent], transfer: Transfer, reporter: Reporter, stop: Stop
) -> tuple[OutputManifest, ...]:
    """Hash and upload every output; a cancel order ends it, a stopping worker tries.

    Raises Failed when the control plane refuses them, Stopped when the attempt has to end.
    """
    manifests = [
        OutputManifest(
            role=output.role,
            kind=output.kind,
            files=scan(Path(output.directory)),
            meta=output.meta,
        )
        for output in outputs
    ]
    total = sum(entry.size for manifest in manifests for entry in manifest.files)
    progress = counting(reporter, stop, total, Why.WORKER_STOPPED)
    wait = partial(stop.wait, tolerated=Why.WORKER_STOPPED)
    for output, manifest in zip(outputs, manifests, strict=True):
        push = partial(transfer.push, Path(output.directory), manifest.files, progress)
        try:
            patiently(push, f"Uploading {output.role}", wait)
        except (EspalierError, OSError) as error:
            raise failed(Reason.CODE_ERROR, error) from error
    return tuple(manifests)


def counting(reporter: Reporter, stop: Stop, total: int, tolerated: Why) -> Callable[[int], None]:
    """Return what counts a transfer's bytes, tells them now and then, and ends it on a stop."""
    lock = threading.Lock()
    done, told = 0, time.monotonic()

    def progress(moved: int) -> None:
        nonlocal done, told
        stop.check(tolerated)
        with lock:
            done += moved
            now = time.monotonic()
            if now - told < _PROGRESS_SECONDS:
                return
            told = now
            event = ProgressEvent(done=done, total=total, unit="bytes", time=time.time())
        reporter.event(event)

    return progress
