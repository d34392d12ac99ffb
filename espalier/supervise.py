"""A few programs kept running as child processes, and none of them left behind.

Each runs in its own session, so that a terminal's Ctrl-C reaches the supervisor alone, with a
log of its own. One that ends is started again, later each time. They end in reverse order of
their start; should the supervisor be killed, its guard ends them (espalier.guard), and should
both be killed, the next supervisor of the same directory does, by the record it left.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import IO

from espalier.errors import Conflict, EspalierError
from espalier.processes import end, identity

#: Seconds until a role that ended is started again: doubled each time, up to the last.
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0
#: Seconds after which a role counts as steady, and its backoff begins anew. Short: what is killed
#: now and then is no crash loop, and waiting long for it would cost more than starting it.
STEADY = 10.0
#: Seconds between looks at the roles.
TICK = 0.25
#: Bytes a log may have when its role is started; above, it becomes ``.log.1``.
LOG_LIMIT = 16 << 20


@dataclass(frozen=True, slots=True)
class Role:
    """A program to keep running: ``name`` is ``web``, or ``worker-2`` where there are several.

    ``grace`` is its time to end after SIGTERM, in seconds; ``fds`` are open files that it gets,
    such as a listening socket, which then outlives it.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    grace: float = 10.0
    fds: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]


@dataclass(slots=True)
class _Running:
    role: Role
    process: subprocess.Popen[bytes]
    since: float
    failures: int = 0
    again_at: float | None = None


@dataclass(slots=True)
class _Directory:
    """The lock and the record of a supervisor, in ``directory``."""

    directory: Path
    lock: IO[str] = field(init=False)

    def acquire(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.lock = (self.directory / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.lock.seek(0)
            owner = self.lock.read().strip() or "unknown"
            self.lock.close()
            raise Conflict(
                f"{self.directory.parent} is in use by another stack (process {owner}).",
                hint="Stop that one first, or choose another --data-dir.",
            ) from error
        self.lock.truncate(0)
        self.lock.write(str(os.getpid()))
        self.lock.flush()

    def release(self) -> None:
        self.record({})
        self.lock.close()

    def record(self, pids: Mapping[str, int]) -> None:
        """Write down who runs, for a supervisor that comes after a crash."""
        rows = [{"role": r, "pid": p, "began": identity(p)} for r, p in pids.items()]
        fresh = self.directory / "pids.json.new"
        fresh.write_text(json.dumps(rows), encoding="utf-8")
        fresh.replace(self.directory / "pids.json")

    def left_over(self) -> list[int]:
        """Return the processes of a crashed supervisor that still run, oldest first."""
        try:
            rows = json.loads((self.directory / "pids.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return []
        return [row["pid"] for row in rows if _same(identity(row["pid"]), row["began"])]


def _same(began: float | None, recorded: float | None) -> bool:
    # The kernel's boot time, which the beginning is reckoned from, moves with the clock.
    return began is not None and recorded is not None and abs(began - recorded) < 2.0


class Supervisor:
    """Starts roles, restarts those that end, stops them all. Use it as a context manager.

    Raises Conflict on entry when another supervisor holds ``run_dir``.
    """

    def __init__(self, run_dir: Path, log_dir: Path, notify: Callable[[str], None]) -> None:
        self._directory = _Directory(run_dir)
        self._log_dir = log_dir
        self._notify = notify
        self._running: dict[str, _Running] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> "Supervisor":
        self._directory.acquire()
        left_over = self._directory.left_over()
        if left_over:
            self._notify(f"ending {len(left_over)} processes of a stack that crashed here")
            for pid in reversed(left_over):
                end([pid], grace=10.0)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._guard = subprocess.Popen(
            [sys.executable, "-P", "-m", "espalier.guard"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, role: Role) -> None:
        """Start ``role`` and keep it running."""
        with self._lock:
            self._running[role.name] = _Running(role, self._spawn(role), time.monotonic())
            self._directory.record(self._pids())

    def pids(self) -> dict[str, int]:
        """Return role → pid, in order of start."""
        with self._lock:
            return self._pids()

    def check(self, name: str, limit: int = 3) -> None:
        """Raise EspalierError with the end of its log when ``name`` ended ``limit`` times."""
        with self._lock:
            failures = self._running[name].failures
        if failures >= limit:
            log = self.log_of(name)
            raise EspalierError(
                f"{name} does not stay up. The end of its log says:\n{_tail(log)}",
                hint=f"The whole log is {log}.",
            )

    def log_of(self, name: str) -> Path:
        return self._log_dir / f"{name}.log"

    def stop(self) -> None:
        """End every role, the last one started first, all of one kind at once."""
        self._stopping.set()
        self._watcher.join()
        with self._lock:
            latest_first = [r for r in reversed(self._running.values()) if r.process.poll() is None]
            for _, group in groupby(latest_first, key=lambda running: running.role.kind):
                together = list(group)
                grace = max(running.role.grace for running in together)
                end([running.process.pid for running in together], grace)
                for running in together:
                    running.process.wait()
            self._running.clear()
        self._tell_guard("bye")
        self._guard.communicate()
        self._directory.release()

    def _pids(self) -> dict[str, int]:
        return {name: running.process.pid for name, running in self._running.items()}

    def _spawn(self, role: Role) -> subprocess.Popen[bytes]:
        path = self.log_of(role.name)
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))
        with path.open("ab") as log:
            process = subprocess.Popen(
                role.argv,
                env=dict(role.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=role.fds,
            )
        self._tell_guard(f"+{process.pid} {role.grace}")
        return process

    def _tell_guard(self, line: str) -> None:
        assert self._guard.stdin is not None
        try:
            print(line, file=self._guard.stdin, flush=True)
        except BrokenPipeError:  # it was killed: the record on disk remains
            return

    def _watch(self) -> None:
        while not self._stopping.wait(TICK):
            with self._lock:
                changed = [self._look_after(running) for running in self._running.values()]
                if any(changed):
                    with suppress(OSError):  # a full disk must not end the watching
                        self._directory.record(self._pids())

    def _look_after(self, running: _Running) -> bool:
        """Start a role again when it has ended and its time has come; tell whether it was."""
        code, now = running.process.poll(), time.monotonic()
        if code is None:
            return False
        if running.again_at is None:
            _kill_group(running.process.pid)
            if now - running.since >= STEADY:
                running.failures = 0
            delay = min(FIRST_BACKOFF * 2**running.failures, LAST_BACKOFF)
            running.failures += 1
            running.again_at = now + delay
            self._tell_guard(f"-{running.process.pid}")
            how = f"exit {code}" if code >= 0 else f"signal {-code}"
            log = self.log_of(running.role.name)
            self._notify(f"{running.role.name} ended ({how}); again in {delay:g} s. Its log: {log}")
        if now < running.again_at:
            return False
        try:
            running.process = self._spawn(running.role)
        except OSError as error:
            running.again_at = now + LAST_BACKOFF
            self._notify(f"{running.role.name} cannot be started: {error}")
            return False
        running.since, running.again_at = now, None
        return True


def _kill_group(leader: int) -> None:
    """End what a dead leader left in its session, which may hold its port or its files."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _tail(path: Path, lines: int = 12) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])
