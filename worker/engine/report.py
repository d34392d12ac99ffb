"""What the child says and hears: events out on a spare descriptor, orders in on stdin."""

import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TextIO

from espalier.messages import (
    CheckpointEvent,
    DoneEvent,
    EngineTask,
    ErrorEvent,
    Event,
    MetricsEvent,
    NoticeEvent,
    Order,
    OutputEvent,
    PhaseEvent,
    ProgressEvent,
    ProofEvent,
    TableEvent,
)
from espalier.states import ArtifactKind, Reason
from worker.serving import READY

log = logging.getLogger("engine")

#: Exit status when the runner went away: nobody is left to publish anything.
ORPHANED = 3
#: Seconds between progress events; metrics and phases are never held back.
_PROGRESS_EVERY = 0.5

Cell = str | float | int | bool | None


class Fault(Exception):
    """The job cannot succeed: why, as a code, and for a person a sentence and the next step."""

    def __init__(self, code: Reason, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class BadInput(Fault):
    """Data, model or spec cannot work: trying again gives the same."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(Reason.BAD_INPUT, message, hint)


class ProofFailed(Fault):
    """It ran, and what it made is not good enough to publish."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(Reason.PROOF_FAILED, message, hint)


class Cancelled(Exception):
    """A cancel order was obeyed; whatever is worth keeping has been announced."""


class Reporter:
    """Writes events as JSON lines; the runner reads them from the other end of a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._progress_at = 0.0
        self._phases: set[str] = set()

    @classmethod
    def from_environment(cls) -> "Reporter":
        """Open the descriptor named in ``ESPALIER_EVENTS_FD``; raise SystemExit without one."""
        text = os.environ.get("ESPALIER_EVENTS_FD", "")
        if not text.isdigit():
            sys.exit("ESPALIER_EVENTS_FD must name an open file descriptor; a worker sets it.")
        return cls(os.fdopen(int(text), "w", encoding="utf-8"))

    def anew(self) -> "Reporter":
        """Return one for another job, on the same pipe."""
        fresh = Reporter(self._stream)
        fresh._lock = self._lock
        return fresh

    def ready(self) -> None:
        """Say that a task may come, or that somebody is there."""
        self.emit(PhaseEvent(name=READY, time=time.time()))

    def emit(self, event: Event) -> None:
        line = event.model_dump_json() + "\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()

    def phase(self, name: str) -> None:
        """Say what begins now; the log hears of each phase once."""
        if name not in self._phases:
            log.info("%s", name)
            self._phases.add(name)
        self.emit(PhaseEvent(name=name, time=time.time()))

    def progress(self, done: int, total: int, unit: str) -> None:
        """Report progress, at most twice a second and always at the end."""
        now = time.monotonic()
        if done < total and now - self._progress_at < _PROGRESS_EVERY:
            return
        self._progress_at = now
        self.emit(ProgressEvent(done=done, total=total, unit=unit, time=time.time()))

    def metrics(self, step: int, **values: float) -> None:
        """Report finite values; JSON has no NaN, and a NaN is told as an error instead."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self.emit(MetricsEvent(step=step, values=finite, time=time.time()))

    def checkpoint(self, step: int, directory: Path) -> None:
        self.emit(CheckpointEvent(step=step, directory=str(directory), time=time.time()))

    def output(
        self, role: str, kind: ArtifactKind, directory: Path, meta: dict[str, Any] | None = None
    ) -> None:
        self.emit(
            OutputEvent(
                role=role, kind=kind, directory=str(directory), meta=meta or {}, time=time.time()
            )
        )

    def proof(
        self,
        name: str,
        value: float,
        *,
        limit: float | None = None,
        ok: bool | None = None,
        detail: str = "",
    ) -> None:
        verdict = {True: "holds", False: "does not hold", None: "recorded"}[ok]
        log.info("proof %s: %.6g (limit %s): %s. %s", name, value, limit, verdict, detail)
        self.emit(
            ProofEvent(name=name, value=value, limit=limit, ok=ok, detail=detail, time=time.time())
        )

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        self.emit(
            TableEvent(
                name=name,
                columns=tuple(columns),
                rows=tuple(tuple(row) for row in rows),
                time=time.time(),
            )
        )

    def notice(self, message: str, level: Literal["info", "warning"] = "info") -> None:
        log.log(logging.WARNING if level == "warning" else logging.INFO, "%s", message)
        self.emit(NoticeEvent(level=level, message=message, time=time.time()))

    def error(self, code: Reason, message: str, hint: str | None = None) -> None:
        log.error("%s", message)
        self.emit(ErrorEvent(code=code, message=message, hint=hint, time=time.time()))

    def done(self, state: Literal["succeeded", "cancelled"]) -> None:
        log.info("%s", state)
        self.emit(DoneEvent(state=state, time=time.time()))


class Orders:
    """Reads the runner's lines: tasks and orders; when they end, so does this process.

    A child must not outlive its runner: nobody would renew its lease or publish its work, and it
    would hold the GPU. Its checkpoints are already published. An empty line asks whether anybody
    is there, and ``answer`` is called.
    """

    def __init__(self, stream: TextIO, answer: Callable[[], None] = lambda: None) -> None:
        self._stream = stream
        self._answer = answer
        self._tasks: SimpleQueue[str] = SimpleQueue()
        self._busy = threading.Event()
        self._cancelled = threading.Event()
        self._finished = threading.Event()

    def listen(self) -> None:
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def task(self) -> str:
        """Wait for a task's line."""
        line = self._tasks.get()
        self._finished.clear()
        return line

    @property
    def waiting(self) -> bool:
        """Whether a task has come that nobody has taken."""
        return not self._tasks.empty()

    def _read(self) -> None:
        for line in self._stream:
            if not line.strip():
                self._answer()
            elif (order := _order(line)) is not None:
                if order.order == "cancel" and self._busy.is_set():
                    log.info("cancel ordered")
                    self._cancelled.set()
            elif self._busy.is_set():
                log.warning("neither an order nor wanted: %.200s", line.strip())
            else:
                self._cancelled.clear()
                self._busy.set()
                self._tasks.put(line)
        if not self._finished.is_set():
            os._exit(ORPHANED)

    def finish(self) -> None:
        """The job has ended: a runner that hangs up from now on is no orphan's parent."""
        self._finished.set()
        self._busy.clear()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise Cancelled after a cancel order; for work that has no state worth keeping."""
        if self.cancelled:
            raise Cancelled


def _order(line: str) -> Order | None:
    try:
        return Order.model_validate_json(line)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Job:
    """One task with its way out (report) and its way in (orders)."""

    task: EngineTask
    report: Reporter
    orders: Orders
    serving: bool = False  # the process may be given another job on this one's base

    def input(self, role: str) -> Path | None:
        """The directory of an input, or None when the spec names none."""
        directory = self.task.inputs.get(role)
        return Path(directory) if directory else None

    def need(self, role: str) -> Path:
        """The directory of an input that this kind cannot do without; raises BadInput."""
        directory = self.input(role)
        if directory is None or not directory.is_dir():
            raise BadInput(f"The job has no {role}: name one in its spec.")
        return directory

    def output(self, role: str) -> Path:
        """A new, empty directory for an output."""
        directory = Path(self.task.output_dir) / role
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def advance(self, done: int, total: int, unit: str) -> None:
        """Report progress and obey a cancel order."""
        self.orders.check()
        self.report.progress(done, total, unit)


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` so that a reader finds it whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(
        json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        encoding="utf-8",
    )
    temporary.replace(path)
