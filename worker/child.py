"""The child process, in a session of its own, watched from outside: one for each attempt.

Spawned, never forked: Metal does not survive a fork. It gets its task and its orders on stdin
and ends when stdin does; it tells events on a pipe of its own; stdout and stderr are the log.
The whole group is ended with ``killpg``, and so is whatever it leaves behind. Between being
started and its task, and between two evals on one base, it belongs to worker.idle.
"""

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from espalier.messages import EVENT, DoneEvent, EngineTask, Event, Order, PhaseEvent
from espalier.settings import settings
from worker.groups import end_group, group_usage, remember, signal_group
from worker.machine import keep_awake
from worker.serving import READY
from worker.watchdog import Usage

log = logging.getLogger("worker")

#: Seconds between two looks at what the group uses.
SAMPLE_SECONDS = 1.0
#: Seconds in which a killed group has to be gone. One that the system holds in a call of a driver
#: never is, and the attempt must not wait for it for ever.
GONE_SECONDS = 60.0
#: Bytes of log that a child's job is told of the time before it.
EARLY_BYTES = 1 << 16
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR
#: What a child may know of the worker's environment. A list of what is allowed: secrets have too
#: many names to be listed.
_ALLOWED = frozenset(
    "CC CPATH CXX HOME LANG LANGUAGE LD_LIBRARY_PATH LIBRARY_PATH LOGNAME"
    " MACOSX_DEPLOYMENT_TARGET PATH PYTHONPATH SDKROOT SHELL TMPDIR TZ USER VIRTUAL_ENV"
    " XDG_CACHE_HOME __CF_USER_TEXT_ENCODING".split()
)
_ALLOWED_PREFIXES = ("DYLD_", "LC_", "METAL_", "MLX_", "MTL_", "OMP_")

OnEvent = Callable[[Event], None]
OnLog = Callable[[bytes], None]
OnUsage = Callable[[Usage, float], float]


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the child's environment: what it needs of the worker's, and no secret."""
    kept = {
        name: value
        for name, value in inherited.items()
        if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }
    if command := settings().converter:  # said in the environment or in the file of settings
        kept["ESPALIER_CONVERTER"] = command
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who hears what the child says: each is called from a thread of its own."""

    event: OnEvent
    log: OnLog
    usage: OnUsage  # and the seconds since the last one; returns those to the next
    ended: Callable[[], None]


class Child:
    """A running engine; ``record`` is where its group is written down (worker.groups).

    It waits until ``begin`` gives it its task; what it writes to its log before is kept for that
    job. On Linux it ends with the thread that made it.
    """

    def __init__(
        self, cwd: Path, record: Path, module: str = "worker.engine", *arguments: str
    ) -> None:
        read_end, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                # -P: no module may come from the directory the child runs in.
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=environment(os.environ) | {"ESPALIER_EVENTS_FD": str(write_end)},
                pass_fds=(write_end,),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self.pid = self._process.pid
        self._record = record
        # Before it is told what to do: whatever it does, the worker's next start can end it.
        remember(record, self.pid)
        self.log_bytes = 0
        self.exit_status: int | None = None
        self.ready = threading.Event()
        self.resting = False
        self._listeners: Listeners | None = None
        self._early = b""
        self._done = False
        self._awake: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._ended = threading.Event()
        self._stdin_lock, self._log_lock = threading.Lock(), threading.Lock()
        self._readers = [
            self._thread("log", self._read_log),
            self._thread("events", partial(self._read_events, os.fdopen(read_end, "rb"))),
        ]
        self._thread("wait", self._wait)

    @property
    def ended(self) -> bool:
        """Whether it is gone and everything it said has been heard."""
        return self._ended.is_set()

    # --- A job ----------------------------------------------------------------------------

    def begin(self, task: EngineTask, listeners: Listeners, record: Path) -> None:
        """Give it a task; from now on ``record`` is where its group is written down."""
        self._move(record)
        self._done = self.resting = False
        self._over = over = threading.Event()
        with self._log_lock:
            self._listeners = listeners
            if self._early:
                listeners.log(self._early)
            self._early = b""
        self._write(task.model_dump_json())
        self._thread("usage", partial(self._sample, over, listeners))
        self._awake = keep_awake(self.pid)
        if self.ended:  # it may have gone while nobody listened
            listeners.ended()

    def rest(self, record: Path) -> None:
        """Take its job from it, after all its log was heard: it is ``resting``."""
        while self._read_some():
            pass
        with self._log_lock:
            self._listeners = None
        self._over.set()
        self._let_sleep()
        self._move(record)

    def forget(self) -> None:
        """Remove the record of its group: it is gone."""
        self._record.unlink(missing_ok=True)

    def answers(self, seconds: float) -> bool:
        """Whether a child without a job says that it is there."""
        self.ready.clear()
        self._write("")
        return self.ready.wait(seconds) and not self.ended

    def cancel(self, attempt_id: str) -> None:
        """Order it to write a checkpoint and end."""
        self._write(Order(order="cancel", attempt_id=attempt_id).model_dump_json())

    def kill(self, *, at_once: bool = False) -> None:
        """End the whole group, those who ignore SIGTERM too; returns when it is gone.

        ``at_once`` gives nobody time to clean up: for a group that does not react any more.
        """
        if at_once:
            signal_group(self.pid, signal.SIGKILL)
        else:
            end_group(self.pid)
        if not self._ended.wait(GONE_SECONDS):
            log.error("child %d does not end: the system holds it", self.pid)

    def hear_out(self, seconds: float) -> None:
        """Wait until it has written something more to its log and come to rest."""
        until = time.monotonic() + seconds
        began = before = self.log_bytes
        while time.monotonic() < until and not self._ended.wait(0.2):
            if began < self.log_bytes == before:
                return
            before = self.log_bytes

    # --- Pipes ----------------------------------------------------------------------------

    def _move(self, record: Path) -> None:
        if record != self._record:
            remember(record, self.pid)
            self._record.unlink(missing_ok=True)
            self._record = record

    def _let_sleep(self) -> None:
        if self._awake:
            self._awake.kill()
            self._awake.wait()
            self._awake = None

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=f"{name}-{self.pid}", daemon=True)
        thread.start()
        return thread

    def _write(self, line: str) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with self._stdin_lock:
            try:
                stdin.write(line.encode() + b"\n")
                stdin.flush()
            except (BrokenPipeError, ValueError):
                log.debug("child %d no longer listens", self.pid)

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, _READABLE)
        while True:
            poll.poll()
            if self._read_some() is None:
                return

    def _read_some(self) -> bool | None:
        """Hand on what it has written; False when that is nothing, None at the end."""
        stdout = self._process.stdout
        assert stdout is not None
        poll = select.poll()
        with self._log_lock:
            if stdout.closed:
                return None
            poll.register(stdout, _READABLE)
            if not poll.poll(0):
                return False
            chunk = os.read(stdout.fileno(), 1 << 16)
            if not chunk:
                return None
            if self._listeners:
                self._listeners.log(chunk)
            else:
                self._early = (self._early + chunk)[-EARLY_BYTES:]
            self.log_bytes += len(chunk)
        return True

    def _read_events(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                try:
                    event = EVENT.validate_json(line)
                except ValidationError as error:
                    log.warning("child %d said no event: %.200r (%s)", self.pid, line, error)
                    continue
                if isinstance(event, PhaseEvent) and event.name == READY:
                    self._is_ready()
                elif self._listeners:
                    self._done = isinstance(event, DoneEvent) and event.state == "succeeded"
                    self._tell(self._listeners, event)

    def _tell(self, listeners: Listeners, event: Event) -> None:
        try:
            listeners.event(event)
        except Exception:  # an unread pipe would stop the child
            log.exception("child %d: event %s", self.pid, event.type)

    def _is_ready(self) -> None:
        """It is there; after a job's last word: it may be given another."""
        self.ready.set()
        if self._done and self._listeners:
            self.resting = True
            self._listeners.ended()

    def _sample(self, over: threading.Event, listeners: Listeners) -> None:
        seconds = SAMPLE_SECONDS
        while not over.wait(seconds):
            seconds = listeners.usage(group_usage(self.pid), seconds)

    def _wait(self) -> None:
        self.exit_status = self._process.wait()
        # Helpers it left behind would hold the pipes open, and the GPU.
        signal_group(self.pid, signal.SIGKILL)
        for reader in self._readers:
            reader.join()
        self._let_sleep()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError), self._log_lock:  # what it never read
                    pipe.close()
        self._ended.set()
        self._over.set()
        if listeners := self._listeners:
            listeners.ended()
