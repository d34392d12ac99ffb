"""Tells the control plane what an attempt does, and hears what it shall do.

One call is report, heartbeat and control: it renews the lease and brings orders. Batches are
written to the spool before they are sent and go out in order, however long the control plane is
away; nothing waits for them. They are written as often while it is away, so that little is lost
with this process.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from espalier.errors import Conflict, EspalierError, Forbidden, NotFound, Unauthorized
from espalier.messages import Event, LogChunk, MetricsEvent, Orders, ProgressEvent, Report
from worker.control import BACKOFF, Control, is_final
from worker.logtext import LogText
from worker.spool import Spool

log = logging.getLogger("worker")

#: Seconds in which news is gathered before it is sent, and between two reports with news.
COALESCE_SECONDS = 0.05
NEWS_SECONDS = 0.25
#: Events and log chunks of one report, at most.
MAX_EVENTS = 500
MAX_CHUNKS = 4
#: Reports made before the first of them is sent: a flood must not keep the lease from renewal.
MAX_REPORTS = 50

#: The attempt is not this worker's any more, or the worker is no longer welcome.
_LOST = (Conflict, Unauthorized, Forbidden, NotFound)


@dataclass(frozen=True, slots=True)
class Handlers:
    """Called from the reporter's thread."""

    orders: Callable[[Orders], None]
    lost: Callable[[EspalierError], None]


class Reporter:
    """One attempt's reports. ``event``, ``log`` and ``memory`` are called from any thread."""

    def __init__(
        self,
        control: Control,
        attempt_id: str,
        spool: Spool,
        handlers: Handlers,
        report_seconds: float,
    ) -> None:
        self._control = control
        self._attempt_id = attempt_id
        self._spool = spool
        self._handlers = handlers
        self._interval = report_seconds
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._metrics_told = False
        self._news = False
        self._memory: int | None = None
        self._peak: int | None = None
        self._log = LogText()
        self._gathering = threading.Lock()
        self._due = time.monotonic() + report_seconds
        self._last = 0.0
        self._retry_at = 0.0
        self._failures = 0
        self._ending = False
        self._gone = False
        self._flushed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"report-{attempt_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def tail(self) -> str:
        """The end of the log."""
        return self._log.tail

    @property
    def peak_memory(self) -> int | None:
        return self._peak

    def event(self, event: Event) -> None:
        """Take an event; news goes out at once, a progress bar's next step with the next report."""
        with self._changed:
            self._events.append(event)
            first_metrics = isinstance(event, MetricsEvent) and not self._metrics_told
            self._metrics_told |= first_metrics
            if first_metrics or not isinstance(event, MetricsEvent | ProgressEvent):
                self._soon()

    def hurry(self) -> None:
        """Report soon, news or not: an order may be waiting."""
        with self._changed:
            self._soon()

    def log(self, data: bytes) -> None:
        self._log.write(data)

    def memory(self, now: int, peak: int) -> None:
        self._memory, self._peak = now, peak

    def settle(self) -> int:
        """Write down what was heard until now: it is on the disk when this returns.

        Unless the disk is full; see worker.spool. Returns the number of the last report, for
        ``has_told``.
        """
        with self._gathering:
            while not self._gather(idle=False):
                pass
            return self._spool.last_seq

    def has_told(self, seq: int) -> bool:
        """Say whether the control plane has answered every report up to ``seq``."""
        first = self._spool.first_seq
        return first is None or first > seq

    def flush(self, wait: Callable[[float], None]) -> None:
        """Send everything that was heard, the log to its end; heartbeats go on.

        ``wait`` sleeps a moment or raises to give up; what is unsent then stays in the spool.
        """
        with self._changed:
            self._ending = True
            self._soon()
        while not self._flushed.is_set() and not self._gone:
            wait(0.01)

    def close(self) -> None:
        """Stop; what is unsent stays in the spool."""
        with self._changed:
            self._gone = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._spool.close()

    def _soon(self) -> None:
        """Make the next report due soon, unless the control plane is away."""
        self._news = True
        if not self._failures:
            soon = max(time.monotonic() + COALESCE_SECONDS, self._last + NEWS_SECONDS)
            self._due = time.monotonic() if self._ending else min(self._due, soon)
            self._changed.notify_all()

    def _run(self) -> None:
        while self._wait_until_due():
            ending = self._ending  # before gathering: what came until then is in the batch
            room = self._spool.takes_log  # else the log has still to say what is missing
            try:
                with self._gathering:
                    whole = self._gather()
                if time.monotonic() >= self._retry_at:
                    self._send()
                else:
                    self._wake_again()
            except Exception:  # an answer that is none: the child goes on meanwhile
                log.exception("attempt %s: reporting failed", self._attempt_id)
                self._retry_later()
                continue
            if self._spool or self._failures:
                continue
            if not whole or not room:
                self._due = 0.0
            elif ending:
                self._flushed.set()

    def _wait_until_due(self) -> bool:
        with self._changed:
            while not self._gone and (left := self._due - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._gone

    def _gather(self, *, idle: bool = True) -> bool:
        """Move what has happened into the spool; say whether that was all.

        ``idle``: when nothing has, and nothing waits, a batch without news renews the lease.
        """
        try:
            return self._gather_some(idle)
        finally:
            self._spool.sync()

    def _gather_some(self, idle: bool) -> bool:
        for _ in range(MAX_REPORTS):
            with self._changed:
                self._news = False
                events = tuple(islice(self._events, MAX_EVENTS))
            chunks = self._take_log()
            if not events and not chunks and (self._spool or not idle):
                return True
            report = Report(
                boot_id=self._control.boot_id,
                seq=self._spool.last_seq + 1,
                events=events,
                log=tuple(chunks),
                memory_bytes=self._memory,
                peak_memory_bytes=self._peak,
            )
            self._spool.append(report)
            with self._changed:
                for _ in events:
                    self._events.popleft()
        return False

    def _take_log(self) -> list[LogChunk]:
        if not self._spool.takes_log:
            self._log.drop()
            return []
        chunks: list[LogChunk] = []
        while len(chunks) < MAX_CHUNKS and (chunk := self._log.take(final=self._ending)):
            chunks.append(chunk)
        return chunks

    def _send(self) -> None:
        while not self._gone and (report := self._spool.head()):
            # One that an earlier process left is this one's to send.
            ours = report.model_copy(update={"boot_id": self._control.boot_id})
            try:
                orders = self._control.report(self._attempt_id, ours)
            except _LOST as error:
                self._gone = True
                self._handlers.lost(error)
                return
            except EspalierError as error:
                log.warning("attempt %s: report %d: %s", self._attempt_id, report.seq, error)
                if not is_final(error, self._failures):
                    self._retry_later()
                    return
                self._spool.pop()  # it will never be taken; the next ones may be
                self._failures = 0
                continue
            self._spool.pop()
            self._failures = 0
            self._interval = orders.report_seconds
            self._handlers.orders(orders)
        with self._changed:
            self._last = time.monotonic()
            self._due = self._last + self._interval
            if self._news:
                self._soon()

    def _retry_later(self) -> None:
        seconds = BACKOFF[min(self._failures, len(BACKOFF) - 1)]
        self._failures += 1
        self._retry_at = time.monotonic() + seconds * random.uniform(0.8, 1.2)  # noqa: S311
        self._wake_again()

    def _wake_again(self) -> None:
        """While the control plane is away: write down what comes, send when it is time to."""
        self._due = min(self._retry_at, time.monotonic() + self._interval)
