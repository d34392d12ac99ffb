"""A storm: kill -9 of random parts of a running stack, at random moments, and what came of each.

The moments and targets are drawn from a seed, which is printed. Each kill has an aftermath in a
thread of its own: servers that nobody supervises are started again after a short outage, and all
are watched until they are back. So faults overlap, as they do on a bad night.
"""

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from sqlalchemy import Row, bindparam, text
from sqlalchemy.exc import SQLAlchemyError

from espalier.processes import is_alive
from scheduler.db import Database
from tests.acceptance.stacks import Up, attempt_of
from tests.faults.stacks import Broker, Team

T = TypeVar("T")

#: What is killed. ``worker`` leaves its child an orphan; ``machine`` takes the child with it.
FAULTS = (
    *("web", "scheduler", "broker", "broker wiped", "worker", "machine", "child"),
    *("postgresql", "s3"),
)
#: What an embedded stack has of it.
EMBEDDED_FAULTS = ("web", "scheduler", "broker", "worker", "machine", "child")
#: What a role says in its log when it works.
READY = {"scheduler": "The scheduler runs", "valkey": "Ready to accept connections"}
#: Seconds between looks.
TICK = 0.1
#: Seconds for a killed thing to be back, and for something to be there to kill.
PATIENCE = 240.0
#: Seconds between kills, on average: not below, so that something happens in between, and not
#: above, so that the storm ends.
PACE = (1.0, 12.0)
#: Of the time that the jobs still seem to need, how much the kills left are spread over.
HASTE = 0.5
#: How many other jobs are as much work as a training.
TRAIN_WEIGHT = 4


@dataclass
class Kill:
    """One kill and its aftermath. Seconds; ``back`` None means: not within PATIENCE."""

    fault: str
    at: datetime
    pid: int
    what: str
    attempts: tuple[str, ...] = ()  # that it hit directly
    outage: float = 0.0  # until the harness started it again
    back: float | None = None  # from the kill until it served again


@dataclass
class Storm:
    """Kills over one stack and its servers, while jobs are under way.

    To be made before they are submitted: its pace goes by how long they have been at it.
    """

    stack: Up
    database: Database
    seed: int
    more: Callable[[], None]  # submits jobs: called when none is left before the kills are over
    team: Team | None = None  # its servers, where they are not the stack's own
    kills: list[Kill] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._began = time.monotonic()
        self._aftermaths: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._down: set[str] = set()
        self._ended = (0, 1)
        self._share = 0.02

    def rage(self, count: int, of: Sequence[str]) -> None:
        """Kill ``count`` times, each fault as often as the others, before the jobs have ended."""
        print(f"\n{count} kills, seed {self.seed}:")
        faults = [of[n % len(of)] for n in range(count)]
        self._random.shuffle(faults)
        for left, fault in zip(range(count, 0, -1), faults, strict=True):
            elapsed = time.monotonic() - self._began
            pause = self._random.uniform(0.0, 2.0) * self._pace(left, elapsed)
            time.sleep(pause)  # the random moment itself
            self._strike(fault)
        for aftermath in self._aftermaths:
            aftermath.join()
        assert not self._errors, self._errors

    def _pace(self, left: int, elapsed: float) -> float:
        """Seconds between kills so that they last as long as the jobs, by how far those are."""
        self._feed()
        self._share = share(self.database) or self._share
        remaining = elapsed * (1 - self._share) / self._share
        return min(max(HASTE * remaining / left, PACE[0]), PACE[1])

    def _feed(self) -> None:
        """On a machine faster than was reckoned with, the storm goes on over more of the same."""
        ended, of = self.ended()
        if ended == of:
            with contextlib.suppress(AssertionError):  # something is down: at the next look
                self.more()

    def ended(self) -> tuple[int, int]:
        """Return how many jobs have ended, and how many there are; the last known while the
        database is away."""
        self._ended = progress(self.database) or self._ended
        return self._ended

    def ask(self, query: str, **values: Any) -> list[Row[Any]]:
        """Return the rows; a database that is away is waited for."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.database.reading() as session:
                    lists: list[Any] = [bindparam(n, expanding=True) for n in values if n == "ids"]
                    return list(session.execute(text(query).bindparams(*lists), values).all())
            except SQLAlchemyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(TICK)

    # --- One kill -------------------------------------------------------------------------

    def _strike(self, fault: str) -> None:
        if fault in ("web", "scheduler"):
            self._strike_role(fault, fault)
        elif fault == "broker" and self.team is None:
            self._strike_role(fault, "valkey")
        elif fault in ("worker", "machine", "child"):
            self._strike_worker(fault)
        else:
            self._strike_server(fault)

    def _strike_role(self, fault: str, role: str) -> None:
        pid = _until(lambda: self._role(role), f"a {role} to kill")
        log = _Log(self.stack.data_dir / "logs" / f"{role}.log")
        kill = self._kill(fault, role, pid)
        if role == "web":
            self._follow(
                kill, lambda: self._role(role) not in (None, pid) and self._serves("/healthz")
            )
        else:
            self._follow(kill, lambda: log.says(READY[role]))

    def _strike_worker(self, fault: str) -> None:
        busy = _until(self._busy_worker, "a worker with a child to kill")
        log = _Log(self.stack.data_dir / "logs" / f"{busy.role}.log")
        name = f"local-{busy.role.removeprefix('worker-')}"
        attempts = (busy.attempt,)
        if fault == "child":
            kill = self._kill(fault, name, busy.child, attempts)
            self._follow(kill, lambda: self._goes_on(attempts))
            return
        kill = self._kill(fault, name, busy.pid, attempts)
        if fault == "machine":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(busy.child, signal.SIGKILL)
        self._follow(kill, lambda: log.says("ready"))

    def _strike_server(self, fault: str) -> None:
        assert self.team is not None
        server = {s.name: s for s in self.team.servers()}[fault.removesuffix(" wiped")]
        _until(lambda: server.name not in self._down, f"{server.name} to be back")
        self._down.add(server.name)
        assert server.process is not None
        kill = self._note(Kill(fault, datetime.now(UTC), server.process.pid, server.name))
        kill.outage = self._random.uniform(0.2, 6.0)
        server.kill()
        if fault.endswith("wiped"):
            assert isinstance(server, Broker)
            server.wipe()

        def restart() -> None:
            time.sleep(kill.outage)  # the outage itself
            server.start()
            self._down.discard(server.name)

        self._follow(kill, lambda: self._serves("/readyz"), restart)

    def _kill(self, fault: str, what: str, pid: int, attempts: tuple[str, ...] = ()) -> Kill:
        kill = self._note(Kill(fault, datetime.now(UTC), pid, what, attempts))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return kill

    def _note(self, kill: Kill) -> Kill:
        self.kills.append(kill)
        elapsed = (kill.at - self.kills[0].at).total_seconds()
        ended, of = self.ended()
        print(
            f"  {elapsed:6.1f} s  kill {len(self.kills):2}  {kill.fault:12} {kill.what}"
            f" (pid {kill.pid}); {ended} of {of} jobs had ended",
            flush=True,
        )
        return kill

    def _follow(
        self, kill: Kill, is_back: Callable[[], object], first: Callable[[], None] | None = None
    ) -> None:
        """Watch, in a thread of its own, until what was killed is back."""
        began = time.monotonic()

        def watch() -> None:
            try:
                if first is not None:
                    first()
                _until(is_back, f"{kill.what} to be back after {kill.fault}")
                kill.back = time.monotonic() - began
            except BaseException as error:  # told by the test's own thread
                self._errors.append(error)

        thread = threading.Thread(target=watch, name=f"after-{kill.fault}", daemon=True)
        self._aftermaths.append(thread)
        thread.start()

    # --- What is there --------------------------------------------------------------------

    def _role(self, role: str) -> int | None:
        """Return the pid of a role that runs."""
        pid = recorded(self.stack.data_dir).get(role)
        return pid if pid is not None and _lives(pid) else None

    def _busy_worker(self) -> "_Busy | None":
        """Return a random worker that runs a child."""
        roles = [r for r in recorded(self.stack.data_dir) if r.startswith("worker-")]
        self._random.shuffle(roles)
        for role in roles:
            pid = self._role(role)
            child = _child(pid) if pid is not None else None
            if pid is not None and child is not None:
                return _Busy(role, pid, *child)
        self._feed()
        return None

    def _goes_on(self, attempts: tuple[str, ...]) -> bool:
        """Tell whether each of these is over and its job ended or running again."""
        rows = self.ask(
            "SELECT a.state, j.finished_at, (SELECT count(*) FROM attempts b"
            "  WHERE b.job_id = a.job_id AND b.number > a.number AND b.claimed_at IS NOT NULL) AS n"
            " FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE a.id IN :ids",
            ids=attempts,
        )
        return all(row.finished_at or row.n for row in rows)

    def _serves(self, path: str) -> bool:
        try:
            return httpx.get(f"{self.stack.url}{path}", timeout=15.0).status_code == 200
        except httpx.HTTPError:
            return False


@dataclass(frozen=True)
class _Busy:
    role: str
    pid: int
    child: int
    attempt: str


@dataclass
class _Log:
    """What a role says from now on."""

    path: Path

    def __post_init__(self) -> None:
        self._from = self.path.stat().st_size

    def says(self, words: str) -> bool:
        with self.path.open("rb") as file:
            file.seek(self._from)
            return words.encode() in file.read()


def progress(database: Database) -> tuple[int, int] | None:
    """Return how many jobs have ended, and how many there are; None while nobody can say."""
    with contextlib.suppress(SQLAlchemyError), database.reading() as session:
        row = session.execute(text("SELECT count(finished_at), count(*) FROM jobs")).one()
        return row[0], row[1]
    return None


def share(database: Database) -> float | None:
    """Return about how much of the work is done, at least a fiftieth; None while nobody can say.

    A training takes longer than what comes after it.
    """
    weight = f"CASE WHEN kind = 'train' THEN {TRAIN_WEIGHT} ELSE 1 END"
    query = f"SELECT sum(CASE WHEN finished_at IS NULL THEN 0 ELSE {weight} END), sum({weight})"
    with contextlib.suppress(SQLAlchemyError), database.reading() as session:
        done, of = session.execute(text(f"{query} FROM jobs")).one()
        return max(float(done) / float(of), 0.02)
    return None


def recorded(data_dir: Path) -> dict[str, int]:
    """Return role → pid as the supervisor has written it down; pids change over restarts."""
    rows = json.loads((data_dir / "run" / "pids.json").read_text())
    return {row["role"]: row["pid"] for row in rows}


def _lives(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _child(worker: int) -> tuple[int, str] | None:
    """Return the engine process of a worker that has one, and the attempt that it works at."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(worker).children():
            if attempt := attempt_of(process):
                return process.pid, attempt
    return None


def _until(found: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(TICK)
    return value
