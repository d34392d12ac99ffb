"""One attempt on this machine: inputs, child, outputs, and how it ended."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from espalier.errors import Conflict, EspalierError, InvalidInput
from espalier.messages import (
    Assignment,
    EngineTask,
    Failure,
    Finish,
    Orders,
    OutputEvent,
    OutputManifest,
    PhaseEvent,
)
from espalier.states import Reason
from worker.control import patiently
from worker.inputs import Fetched
from worker.outputs import counting, publish
from worker.publisher import CheckpointPublisher
from worker.reporter import Handlers, Reporter
from worker.spool import Spool
from worker.stop import Stop, Stopped, Why
from worker.supervision import Supervision
from worker.tools import Failed, Tools, failed

log = logging.getLogger("worker")


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
            outputs = self._publish(self._supervise(self._fetch()).outputs)
        except Stopped:
            return self._stopped()
        except Failed as fault:
            return self._failure(fault.failure)
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
        total = sum(entry.size for entry in files)
        progress = counting(self._reporter, self.stop, total, Why.NOT)
        try:
            return self._tools.inputs.fetch(assignment, self._directory, self.stop, progress)
        except InvalidInput as error:
            raise failed(Reason.BAD_INPUT, error) from error
        except (EspalierError, OSError) as error:
            raise failed(Reason.INPUT_LOST, error) from error

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

    def _supervise(self, fetched: Fetched) -> Supervision:
        """Run the child to its end. Raises Failed, or Stopped when it was asked to end."""
        self._phase("starting")  # importing MLX and mlx-lm takes seconds
        supervision = Supervision(
            self._task(fetched),
            self._tools,
            self._directory,
            self._reporter,
            self.stop,
            self._checkpoints.publish,
        )
        supervision.run()
        return supervision

    # --- Outputs --------------------------------------------------------------------------

    def _publish(self, outputs: Sequence[OutputEvent]) -> tuple[OutputManifest, ...]:
        self._phase("publishing")
        return publish(outputs, self._tools.transfer, self._reporter, self.stop)

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
                self._finish(self._failure(failed(Reason.CODE_ERROR, error).failure))
        else:
            outputs = ", ".join(finished.outputs.values()) or "no outputs"
            log.info("attempt %s %s: %s", attempt_id, finish.state, outputs)
