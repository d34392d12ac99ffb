"""One attempt on this machine: inputs, child, outputs, and how it ended."""

import logging
import shutil
import time
from collections.abc import Callable
from functools import partial

from espalier.errors import EspalierError, Forbidden, InvalidInput, Unauthorized
from espalier.messages import (
    Assignment,
    EngineTask,
    Failure,
    Finish,
    NoticeEvent,
    Orders,
    OutputManifest,
    PhaseEvent,
)
from espalier.states import Kind, Reason
from worker.cache import NoRoom
from worker.disk import is_full
from worker.idle import Base
from worker.inputs import Fetched
from worker.integrations.telling import telling
from worker.ledger import Ledger
from worker.outputs import counting, failing, finish, publish
from worker.publisher import CheckpointPublisher
from worker.reporter import Handlers, Reporter
from worker.spool import Spool
from worker.stop import Stop, Stopped, Why
from worker.supervision import Supervision
from worker.tools import Failed, Tools, failed

log = logging.getLogger("worker")

#: The worker ends, not the work: what is finished and unpublished waits for its next start.
_WORKER_ENDS = frozenset({Why.WORKER_STOPPED, Why.KILLED})


class Attempt:
    """An assignment that was claimed. Whether its directory may go is in ``over``."""

    def __init__(
        self,
        assignment: Assignment,
        tools: Tools,
        ledger: Ledger,
        on_orders: Callable[[Orders], None],
    ) -> None:
        self.assignment = assignment
        self.stop = Stop()
        self.over = False
        self._tools = tools
        self._ledger = ledger
        self._directory = ledger.directory
        self._reporter = Reporter(
            tools.control,
            assignment.attempt_id,
            Spool(ledger.spool, tools.spool_bytes),
            Handlers(orders=on_orders, lost=self._lost),
            assignment.report_seconds,
        )
        self._checkpoints = CheckpointPublisher(
            tools.control, tools.transfer, ledger, self.stop, self._reporter, self._lost
        )

    def run(self) -> None:
        """Do the work and finish. Raises Stopped when it may not or can not finish."""
        wait = partial(self.stop.wait, tolerated=Why.CANCELLED)
        self._reporter.start()
        try:
            try:
                ending = self._outcome()
                self._note(ending)
            finally:
                self._checkpoints.close()
            self._reporter.flush(wait)
            self.stop.check(Why.CANCELLED)
            # Reports go on meanwhile: they keep the lease while the store is away.
            finish(self._tools.control, self.assignment.attempt_id, ending, wait)
            self.over = True
        finally:
            self._reporter.close()

    def _note(self, ending: Finish) -> None:
        """Write down how it ended: this process may end before anybody hears of it."""
        self._reporter.settle()
        if not (self._ledger.outputs and self.stop.why in _WORKER_ENDS):
            self._ledger.ended(ending)

    def hear(self) -> None:
        """Report now, and so hear of orders."""
        self._reporter.hurry()

    def _lost(self, error: EspalierError) -> None:
        if not self.over:
            log.warning("attempt %s is lost: %s", self.assignment.attempt_id, error.detail)
        # A worker that is not welcome may be again, with another token.
        self.over = self.over or not isinstance(error, Unauthorized | Forbidden)
        self.stop.request(Why.LEASE_LOST)

    def _outcome(self) -> Finish:
        """Return how it ended; the outputs of a success are uploaded."""
        boot_id = self._tools.control.boot_id
        try:
            self._supervise(self._fetch())
            outputs = self._publish()
        except Stopped:
            return self._stopped()
        except Failed as fault:
            return self._failure(fault.failure)
        except Exception as error:
            log.exception("attempt %s: the worker failed", self.assignment.attempt_id)
            if is_full(error):
                return self._failure(self._disk_full(error))
            message = f"The worker failed: {type(error).__name__}: {error}"
            return self._failure(Failure(code=Reason.CODE_ERROR, message=message[:2000]))
        return Finish(
            boot_id=boot_id,
            state="succeeded",
            outputs=outputs,
            peak_memory_bytes=self._reporter.peak_memory,
        )

    def _failure(self, failure: Failure) -> Finish:
        return failing(self._tools.control.boot_id, failure, self._reporter.peak_memory)

    def _disk_full(self, error: Exception) -> Failure:
        return disk_full(error, shutil.disk_usage(self._directory).free)

    def _stopped(self) -> Finish:
        if self.stop.why in _WORKER_ENDS:
            message = "The worker was stopped; the job goes on from its last checkpoint."
            return self._failure(Failure(code=Reason.WORKER_STOPPED, message=message))
        return Finish(
            boot_id=self._tools.control.boot_id,
            state="cancelled",
            reason=Reason.PAUSED if self.stop.why is Why.PAUSED else Reason.CANCELLED,
            peak_memory_bytes=self._reporter.peak_memory,
        )

    def _phase(self, name: str) -> None:
        self._reporter.event(PhaseEvent(name=name, time=time.time()))

    def _notice(self, message: str) -> None:
        log.warning("attempt %s: %s", self.assignment.attempt_id, message)
        self._reporter.event(NoticeEvent(level="warning", message=message, time=time.time()))

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
        except NoRoom as error:
            raise failed(Reason.DISK_FULL, error) from error
        except (EspalierError, OSError) as error:
            if is_full(error):
                raise Failed(self._disk_full(error)) from error
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

    def _base(self) -> Base | None:
        """Return what tells an eval's base, blob by blob; None for what needs a clean process."""
        if self.assignment.kind != Kind.EVAL:
            return None
        files = [e for i in self.assignment.inputs if i.role == "model" for e in i.files]
        return frozenset((entry.path, entry.sha256) for entry in files) or None

    def _supervise(self, fetched: Fetched) -> None:
        """Run the child to its end. Raises Failed, or Stopped when it was asked to end."""
        self._phase("starting")  # importing MLX and mlx-lm takes seconds
        with telling(self.assignment, self._notice) as told:
            supervision = Supervision(
                self._task(fetched),
                self._tools,
                self._directory,
                self._reporter,
                self.stop,
                self._checkpoints.publish,
                self._base(),
                told,
            )
            supervision.run()
        self._reporter.settle()
        self._ledger.completed(supervision.outputs)

    # --- Outputs --------------------------------------------------------------------------

    def _publish(self) -> tuple[OutputManifest, ...]:
        self._phase("publishing")
        outputs = self._ledger.outputs or ()
        return publish(outputs, self._tools.transfer, self._reporter, self.stop)


def disk_full(error: Exception, free: int) -> Failure:
    """Return the failure of an attempt whose worker's disk has ``free`` bytes left."""
    return Failure(
        code=Reason.DISK_FULL,
        message=f"The worker's disk is full: {error}. It has {free:,} bytes left.",
        hint="Free space on the worker's disk, or lower ESPALIER_CACHE_BYTES there. The job goes"
        " on from its last checkpoint.",
    )
