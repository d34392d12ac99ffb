"""One attempt on this machine: inputs, child, outputs, and how it ended."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from espalier.errors import Conflict, EspalierError, InvalidInput
from espalier.messages import (
    Assignment,
    CheckpointEvent,
    DoneEvent,
    EngineTask,
    ErrorEvent,
    Event,
    Failure,
    Finish,
    Orders,
    OutputEvent,
    OutputManifest,
    PhaseEvent,
    ProgressEvent,
)
from espalier.states import Reason
from espalier.transfer import Transfer, scan
from worker.child import Child, Listeners
from worker.control import Control, patiently
from worker.diagnosis import diagnose
from worker.groups import remember
from worker.inputs import Fetched, Inputs
from worker.publisher import CheckpointPublisher
from worker.reporter import Handlers, Reporter
from worker.spool import Spool
from worker.stop import Stop, Stopped, Why

log = logging.getLogger("worker")

#: In an attempt's directory, for the next start of the worker should this one crash.
GROUP = "group.json"
#: Seconds between two progress events of a transfer.
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Tools:
    """What every attempt of a worker uses."""

    control: Control
    transfer: Transfer
    inputs: Inputs
    memory_limit: int
    cancel_grace_seconds: float  # from order to kill
    engine: str = "worker.engine"  # the module that the child runs


class Failed(Exception):
    """The attempt failed; says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _failed(code: Reason, error: EspalierError | OSError) -> Failed:
    hint = error.hint if isinstance(error, EspalierError) else None
    return Failed(Failure(code=code, message=str(error), hint=hint))


class Attempt:
    """An assignment that was claimed. ``run`` returns when nothing of it is left but its name."""

    def __init__(
        self,
        assignment: Assignment,
        tools: Tools,
        directory: Path,
        on_orders: Callable[[Orders], None],
    ) -> None:
        self.assignment = assignment
        self.stop = Stop()
        self._tools = tools
        self._directory = directory
        self._outputs: list[OutputEvent] = []
        self._error: ErrorEvent | None = None
        self._heard = False
        self._done: Literal["succeeded", "cancelled"] | None = None
        attempt_id = assignment.attempt_id
        self._reporter = Reporter(
            tools.control,
            attempt_id,
            Spool(directory / "spool.jsonl"),
            Handlers(orders=on_orders, lost=self._lost),
            assignment.report_seconds,
        )
        self._checkpoints = CheckpointPublisher(
            tools.control, tools.transfer, attempt_id, self.stop
        )

    def run(self) -> None:
        """Do the work and finish. Raises Stopped when it may not or can not finish."""
        self._reporter.start()
        try:
            finish = self._outcome()
        finally:
            self._checkpoints.close()
            self._reporter.close(partial(self.stop.wait, tolerated=Why.CANCELLED))
        self.stop.check(Why.CANCELLED)
        self._finish(finish)

    def hear(self) -> None:
        """Report now, and so hear of orders."""
        self._reporter.hurry()

    def _lost(self, why: str) -> None:
        log.warning("attempt %s is lost: %s", self.assignment.attempt_id, why)
        self.stop.request(Why.LEASE_LOST)

    def _outcome(self) -> Finish:
        """Return how it ended; the outputs of a success are uploaded."""
        boot_id = self._tools.control.boot_id
        try:
            self._supervise(self._fetch())
            outputs = self._publish()
        except Stopped:
            return self._stopped()
        except Failed as failed:
            return self._failure(failed.failure)
        except Exception as error:
            log.exception("attempt %s: the worker failed", self.assignment.attempt_id)
            message = f"The worker failed: {type(error).__name__}: {error}"
            return self._failure(Failure(code=Reason.CODE_ERROR, message=message[:2000]))
        return Finish(
            boot_id=boot_id,
            state="succeeded",
            outputs=outputs,
            peak_memory_bytes=self._reporter.peak_memory,
        )

    def _failure(self, failure: Failure) -> Finish:
        return Finish(
            boot_id=self._tools.control.boot_id,
            state="failed",
            reason=failure.code,
            error=failure,
            peak_memory_bytes=self._reporter.peak_memory,
        )

    def _stopped(self) -> Finish:
        if self.stop.why is Why.WORKER_STOPPED:
            message = "The worker was stopped; the job goes on from its last checkpoint."
            return self._failure(Failure(code=Reason.WORKER_STOPPED, message=message))
        return Finish(
            boot_id=self._tools.control.boot_id,
            state="cancelled",
            reason=Reason.CANCELLED,
            peak_memory_bytes=self._reporter.peak_memory,
        )

    def _phase(self, name: str) -> None:
        self._reporter.event(PhaseEvent(name=name, time=time.time()))

    # --- Inputs ---------------------------------------------------------------------------

    def _fetch(self) -> Fetched:
        self._phase("fetching")
        assignment = self.assignment
        files = [entry for item in assignment.inputs for entry in item.files]
        files += assignment.resume.files if assignment.resume else ()
        progress = self._progress(sum(entry.size for entry in files), Why.NOT)
        try:
            return self._tools.inputs.fetch(assignment, self._directory, self.stop, progress)
        except InvalidInput as error:
            raise _failed(Reason.BAD_INPUT, error) from error
        except (EspalierError, OSError) as error:
            raise _failed(Reason.INPUT_LOST, error) from error

    # --- Child ----------------------------------------------------------------------------

    def _task(self, fetched: Fetched) -> EngineTask:
        output, scratch = self._directory / "output", self._directory / "scratch"
        output.mkdir()
        scratch.mkdir()
        resume = self.assignment.resume
        return EngineTask(
            attempt_id=self.assignment.attempt_id,
            kind=self.assignment.kind,
            spec=self.assignment.spec,
            inputs={role: str(path) for role, path in fetched.inputs.items()},
            output_dir=str(output),
            scratch_dir=str(scratch),
            resume_dir=str(fetched.resume) if fetched.resume else None,
            resume_step=resume.step if resume else 0,
            memory_limit=self._tools.memory_limit,
        )

    def _supervise(self, fetched: Fetched) -> None:
        """Run the child to its end. Raises Failed, or Stopped when it was asked to end."""
        task = self._task(fetched)
        changed = threading.Event()
        self.stop.watch(changed.set)
        self.stop.check()
        listeners = Listeners(self._hear, self._reporter.log, self._reporter.memory, changed.set)
        self._phase("starting")  # importing MLX and mlx-lm takes seconds
        child = Child(task, Path(task.scratch_dir), listeners, self._tools.engine)
        try:
            remember(self._directory / GROUP, child.pid)
            self._watch(child, changed)
        finally:
            if not child.ended:
                child.kill()
            (self._directory / GROUP).unlink(missing_ok=True)
        self.stop.check()
        if self._done != "succeeded" or child.exit_status != 0:
            raise Failed(self._why(child))

    def _watch(self, child: Child, changed: threading.Event) -> None:
        """Wait for the child's end; order it to end when the attempt has to, then make it."""
        deadline: float | None = None
        while not child.ended:
            changed.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            changed.clear()
            if self.stop.why and deadline is None:
                # A child that has said nothing yet is still loading, and has nothing to save.
                grace = self._tools.cancel_grace_seconds if self._heard else 0.0
                deadline = time.monotonic() + grace
                child.cancel(self.assignment.attempt_id)
            if self.stop.why >= Why.KILLED or (deadline and time.monotonic() >= deadline):
                child.kill()

    def _hear(self, event: Event) -> None:
        self._heard = True
        match event:
            case CheckpointEvent() | OutputEvent():
                if not Path(event.directory).resolve().is_relative_to(self._directory.resolve()):
                    log.error("the child named a foreign directory: %s", event.directory)
                    return
                if isinstance(event, CheckpointEvent):
                    self._checkpoints.publish(event)
                else:
                    self._outputs.append(event)
            case ErrorEvent():
                self._error = event
            case DoneEvent():
                self._done = event.state
        self._reporter.event(event)

    def _why(self, child: Child) -> Failure:
        if self._error:
            error = self._error
            return Failure(code=error.code, message=error.message, hint=error.hint)
        status = child.exit_status if child.exit_status is not None else -9
        return diagnose(status, self._reporter.tail, child.peak_memory, self._tools.memory_limit)

    # --- Outputs --------------------------------------------------------------------------

    def _publish(self) -> tuple[OutputManifest, ...]:
        """Hash and upload every output; a cancel order ends it, a stopping worker tries."""
        self._phase("publishing")
        manifests = [
            OutputManifest(
                role=output.role,
                kind=output.kind,
                files=scan(Path(output.directory)),
                meta=output.meta,
            )
            for output in self._outputs
        ]
        total = sum(entry.size for manifest in manifests for entry in manifest.files)
        progress = self._progress(total, Why.WORKER_STOPPED)
        wait = partial(self.stop.wait, tolerated=Why.WORKER_STOPPED)
        for output, manifest in zip(self._outputs, manifests, strict=True):
            push = partial(
                self._tools.transfer.push, Path(output.directory), manifest.files, progress
            )
            try:
                patiently(push, f"Uploading {output.role}", wait)
            except (EspalierError, OSError) as error:
                raise _failed(Reason.CODE_ERROR, error) from error
        return tuple(manifests)

    def _progress(self, total: int, tolerated: Why) -> Callable[[int], None]:
        """Return what counts a transfer's bytes, tells them now and then, and ends it on a stop."""
        lock = threading.Lock()
        done, told = 0, time.monotonic()

        def progress(moved: int) -> None:
            nonlocal done, told
            self.stop.check(tolerated)
            with lock:
                done += moved
                now = time.monotonic()
                if now - told < _PROGRESS_SECONDS:
                    return
                told = now
                event = ProgressEvent(done=done, total=total, unit="bytes", time=time.time())
            self._reporter.event(event)

        return progress

    def _finish(self, finish: Finish) -> None:
        """Tell how it ended; a success that is refused ends as the failure that refused it."""
        attempt_id = self.assignment.attempt_id
        send = partial(self._tools.control.finish, attempt_id, finish)
        wait = partial(self.stop.wait, tolerated=Why.CANCELLED)
        try:
            finished = patiently(send, f"Finishing {attempt_id}", wait)
        except Conflict as error:
            log.warning("attempt %s: finish refused: %s", attempt_id, error.detail)
        except EspalierError as error:
            log.error("attempt %s: finish refused: %s", attempt_id, error.detail)
            if finish.state == "succeeded":
                self._finish(self._failure(_failed(Reason.CODE_ERROR, error).failure))
        else:
            outputs = ", ".join(finished.outputs.values()) or "no outputs"
            log.info("attempt %s %s: %s", attempt_id, finish.state, outputs)
