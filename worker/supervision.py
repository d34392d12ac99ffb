"""Watches over one attempt's child: hears it, orders it to end, ends it, says why it ended."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil

from espalier.messages import (
    CheckpointEvent,
    DoneEvent,
    EngineTask,
    ErrorEvent,
    Event,
    Failure,
    NoticeEvent,
    OutputEvent,
    PhaseEvent,
)
from worker.child import SAMPLE_SECONDS, Child, Listeners
from worker.diagnosis import Death, diagnose, hung, too_much
from worker.groups import members
from worker.idle import Base
from worker.machine import jettisoned, oom_kills
from worker.reporter import Reporter
from worker.stacks import ask, sample
from worker.stop import Stop, Why
from worker.tools import Failed, Tools
from worker.watchdog import Hang, MemoryGuard, Usage, Watchdog

log = logging.getLogger("worker")

#: In an attempt's directory, for the next start of the worker should this one crash.
GROUP = "group.json"
#: Seconds between two looks at a child that is close to its memory limit.
CLOSE_SECONDS = 0.25
#: Seconds that a hung child gets to write down its Python stacks.
ANSWER_SECONDS = 5.0


class Supervision:
    """One child, from its task to its end. ``outputs`` are what it has announced.

    ``base`` tells the model of a job that may be done by a child that holds it already; ``told``
    hears every event beside the control plane.
    """

    def __init__(
        self,
        task: EngineTask,
        tools: Tools,
        directory: Path,
        reporter: Reporter,
        stop: Stop,
        on_checkpoint: Callable[[CheckpointEvent], None],
        base: Base | None = None,
        told: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.outputs: list[OutputEvent] = []
        self._task = task
        self._base = base
        self._tools = tools
        self._directory = directory
        self._scratch = Path(task.scratch_dir)
        self._reporter = reporter
        self._stop = stop
        self._on_checkpoint = on_checkpoint
        self._told = told
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._watchdog = Watchdog(tools.hang_first_seconds, tools.hang_floor_seconds)
        self._guard = MemoryGuard(tools.memory_limit)
        self._peak = 0
        self._hang: Hang | None = None
        self._sentence: Failure | None = None  # why the child is ended by this worker
        self._error: ErrorEvent | None = None
        self._heard = False
        self._done: Literal["succeeded", "cancelled"] | None = None

    def run(self) -> None:
        """Run the child to its end. Raises Failed, or Stopped when it was asked to end."""
        self._stop.watch(self._changed.set)
        self._stop.check()
        began, kills = time.time(), oom_kills()
        child = self._take()
        try:
            listeners = Listeners(self._hear, self._reporter.log, self._sampled, self._changed.set)
            child.begin(self._task, listeners, self._directory / GROUP)
            self._watch(child)
        finally:
            self._give_back(child)
        self._stop.check()
        if self._done == "succeeded":  # its last word: every output stands
            if child.exit_status:
                log.warning("the child ended with %s after its work was done", child.exit_status)
            return
        raise Failed(self._sentence or self._why(child, began, oom_kills() - kills))

    def _take(self) -> Child:
        if self._tools.idle:
            return self._tools.idle.take(self._base)
        return Child(self._scratch, self._directory / GROUP, self._tools.engine)

    def _give_back(self, child: Child) -> None:
        """End the child, unless it may wait for another eval on the base that it holds."""
        idle = self._tools.idle
        if idle and self._base and child.resting and not self._stop.why:
            idle.keep(child, self._base)
            return
        if not child.ended:
            child.kill()
        child.forget()
        if idle:
            idle.gone(child)

    def _watch(self, child: Child) -> None:
        """Wait for the child's end; order it to end when the attempt has to, then make it."""
        deadline: float | None = None
        while not (child.ended or child.resting):
            self._changed.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            self._changed.clear()
            if self._stop.why and deadline is None:
                # A child that has said nothing yet is still loading, and has nothing to save.
                grace = self._tools.cancel_grace_seconds if self._heard else 0.0
                deadline = time.monotonic() + grace
                child.cancel(self._task.attempt_id)
            if self._stop.why >= Why.KILLED or (deadline and time.monotonic() >= deadline):
                child.kill()
                return
            if not (child.ended or child.resting) and (self._hang or self._sentence):
                self._put_down(child)
                return

    # --- What it shows --------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        self._heard = True
        with self._lock:
            self._watchdog.heard(event.name if isinstance(event, PhaseEvent) else None)
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
        self._told(event)

    def _sampled(self, usage: Usage, seconds: float) -> float:
        """Judge what the child uses; return the seconds to the next look."""
        self._peak = max(self._peak, usage.memory)
        self._reporter.memory(usage.memory, self._peak)
        with self._lock:
            hang = self._watchdog.tick(seconds, usage)
        if self._guard.too_much(usage.memory) and not self._sentence:
            self._sentence = too_much(usage.memory, self._tools.memory_limit)
            self._changed.set()
        elif hang and not self._hang:
            self._hang = hang
            self._changed.set()
        return CLOSE_SECONDS if self._guard.near(usage.memory) else SAMPLE_SECONDS

    # --- Its end --------------------------------------------------------------------------

    def _put_down(self, child: Child) -> None:
        """End a child that holds too much or hangs; tell why, and what it was doing."""
        if self._sentence is None:
            assert self._hang is not None
            self._sentence = hung(self._hang, stopped=_is_stopped(child.pid))
            self._tell(self._sentence.message)
            self._sample(child)
        else:
            self._tell(self._sentence.message)
        # SIGTERM would reach neither who is stopped nor, in time, who takes more and more.
        child.kill(at_once=True)

    def _tell(self, message: str) -> None:
        log.warning("attempt %s: %s", self._task.attempt_id, message)
        self._reporter.log(f"\n[{message}]\n".encode())
        self._reporter.event(NoticeEvent(level="warning", message=message, time=time.time()))

    def _sample(self, child: Child) -> None:
        """Write what the child's threads are doing into its log."""
        if ask(child.pid, listens=self._heard):
            child.hear_out(ANSWER_SECONDS)
        pids = [process.pid for process in members(child.pid)]
        self._reporter.log(f"\n{sample(pids, self._scratch)}".encode())

    def _why(self, child: Child, began: float, kills: int) -> Failure:
        said = None
        if error := self._error:
            said = Failure(code=error.code, message=error.message, hint=error.hint)
        was_killed = child.exit_status == -signal.SIGKILL
        death = Death(
            child.exit_status,
            self._reporter.tail,
            self._peak,
            self._tools.memory_limit,
            kills,
            jettisoned(child.pid, began) if was_killed else None,
        )
        return diagnose(death, said)


def _is_stopped(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False
