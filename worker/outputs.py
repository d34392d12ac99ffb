"""What an attempt made, into the store: hashed, uploaded, described; and how it ended."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from espalier.errors import EspalierError, Forbidden, LeaseLost, NotFound, Unauthorized
from espalier.messages import Failure, Finish, OutputEvent, OutputManifest, ProgressEvent
from espalier.states import Reason
from espalier.transfer import Transfer, scan
from worker.control import Control, is_final_for_work, patiently
from worker.reporter import Reporter
from worker.stop import Stop, Stopped, Why
from worker.tools import failed

log = logging.getLogger("worker")

#: Seconds between two progress events of a transfer.
_PROGRESS_SECONDS = 1.0


def publish(
    outputs: Sequence[OutputEvent], transfer: Transfer, reporter: Reporter, stop: Stop
) -> tuple[OutputManifest, ...]:
    """Hash and upload every output; a cancel order ends it, a pause does not: the work is done.

    While the store is away it is tried again, for as long as that takes; a stopping worker tries
    until its time is up.

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
    progress = counting(reporter, stop, total, Why.PAUSED)
    wait = partial(stop.wait, tolerated=Why.PAUSED)
    for output, manifest in zip(outputs, manifests, strict=True):
        push = partial(transfer.push, Path(output.directory), manifest.files, progress)
        try:
            patiently(push, f"Uploading {output.role}", wait, is_final_for_work)
        except (EspalierError, OSError) as error:
            raise failed(Reason.CODE_ERROR, error) from error
    return tuple(manifests)


def finish(
    control: Control, attempt_id: str, message: Finish, wait: Callable[[float], object]
) -> None:
    """Tell how an attempt ended until that is answered; a repeat gets the first one's answer.

    A success that is refused ends as the failure that refused it. Raises Stopped when nobody may
    be told: what there is to tell is then kept.
    """
    send = partial(control.finish, attempt_id, message)
    try:
        finished = patiently(send, f"Finishing {attempt_id}", wait, is_final_for_work)
    except (Unauthorized, Forbidden) as error:
        log.error("attempt %s: finish refused: %s", attempt_id, error.detail)
        raise Stopped from error
    except (LeaseLost, NotFound) as error:
        log.warning("attempt %s: finish refused: %s", attempt_id, error.detail)
    except EspalierError as error:
        log.error("attempt %s: finish refused: %s", attempt_id, error.detail)
        if message.state == "succeeded":
            failure = failed(Reason.CODE_ERROR, error).failure
            finish(control, attempt_id, failing(message.boot_id, failure), wait)
    else:
        outputs = ", ".join(finished.outputs.values()) or "no outputs"
        log.info("attempt %s %s: %s", attempt_id, message.state, outputs)


def failing(boot_id: str, failure: Failure, peak_memory: int | None = None) -> Finish:
    """Return the finish of an attempt that failed."""
    return Finish(
        boot_id=boot_id,
        state="failed",
        reason=failure.code,
        error=failure,
        peak_memory_bytes=peak_memory,
    )


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
