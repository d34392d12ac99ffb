"""Watches over one attempt's child: hears it, orders it to end, ends it, says why it ended."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from espalier.messages import (
    CheckpointEvent,
    DoneEvent,
    EngineTask,
    ErrorEvent,
    Event,
    Failure,
    OutputEvent,
)
from worker.child import Child, Listeners
from worker.diagnosis import diagnose
from worker.reporter import Reporter
from worker.stop import Stop, Why
from worker.tools import Failed, Tools

log = logging.getLogger("worker")

#: In an attempt's directory, for the next start of the worker should this one crash.
GROUP = "group.json"


class Supervision:
    """One child, from its start to its end. ``outputs`` are what it has announced."""

    def __init__(
        self,
        task: EngineTask,
        tools: Tools,
        directory: Path,
        reporter: Reporter,
        stop: Stop,
        on_checkpoint: Callable[[CheckpointEvent], None],
    ) -> None:
        self.outputs: list[OutputEvent] = []
        self._task = task
        self._tools = tools
        self._directory = directory
        self._reporter = reporter
        self._stop = stop
        self._on_checkpoint = on_checkpoint
        self._error: ErrorEvent | None = None
        self._heard = False
        self._done: Literal["succeeded", "cancelled"] | None = None

    def run(self) -> None:
        """Run the child to its end. Raises Failed, or Stopped when it was asked to end."""
        changed = threading.Event()
        self._stop.watch(changed.set)
        self._stop.check()
        listeners = Listeners(self._hear, self._reporter.log, self._reporter.memory, changed.set)
        scratch = Path(self._task.scratch_dir)
        child = Child(self._task, scratch, listeners, self._directory / GROUP, self._tools.engine)
        try:
            self._watch(child, changed)
        finally:
            if not child.ended:
                child.kill()
            (self._directory / GROUP).unlink(missing_ok=True)
        self._stop.check()
        if self._done != "succeeded" or child.exit_status != 0:
            raise Failed(self._why(child))

    def _watch(self, child: Child, changed: threading.Event) -> None:
        """Wait for the child's end; order it to end when the attempt has to, then make it."""
        deadline: float | None = None
        while not child.ended:
            changed.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            changed.clear()
            if self._stop.why and deadline is None:
                # A child that has said nothing yet is still loading, and has nothing to save.
                grace = self._tools.cancel_grace_seconds if self._heard else 0.0
                deadline = time.monotonic() + grace
                child.cancel(self._task.attempt_id)
            if self._stop.why >= Why.KILLED or (deadline and time.monotonic() >= deadline):
                child.kill()

    def _hear(self, event: Event) -> None:
        self._heard = True
        match event:
            case CheckpointEvent() | OutputEvent():
                if not Path(event.directory).resolve().is_relative_to(self._directory.resolve()):
                    log.error("the child named a foreign directory: %s", event.directory)
                    return
                if isinstance(event, CheckpointEvent):
                    self._on_checkpoint(event)
                else:
                    self.outputs.append(event)
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
