"""Watching jobs until they end: bars on a terminal, lines elsewhere."""

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from rich.markup import escape
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn

from espalier.cli.common import CANCELLED, FAILED, plain, stderr
from espalier.cli.show import Job, numbers, shown
from espalier.client import Client
from espalier.errors import Unavailable
from espalier.states import JOB_ENDED, JobState

#: Seconds between looks at the jobs.
TICK = 0.5
#: Seconds that the control plane may be away: the jobs go on without it.
PATIENCE = 300.0


class Interrupted(Exception):
    """Nobody waits any more; the jobs go on."""


class View(Protocol):
    """Shows jobs as they change."""

    def __enter__(self) -> "View": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, job: Job) -> None: ...


class Lines:
    """A line for each change of state or phase, on standard error."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Any, ...]] = {}
        self._console = stderr()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, job: Job) -> None:
        now = (_where(job), job["phase"] if job["state"] == JobState.RUNNING else None)
        if self._last.get(job["id"]) == now:
            return
        self._last[job["id"]] = now
        words = [job["kind"], job["id"], now[0], now[1] or "", numbers(job)]
        if job["error"]:
            words.append(job["error"]["message"])
        self._console.print(escape(plain("  ".join(word for word in words if word))))


class Bars:
    """A bar for each job, with loss, tokens/s and the time that is left."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.fields[kind]:<9}"),
            TextColumn("[dim]{task.fields[id]}"),
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=28, complete_style="green", finished_style="green"),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}"),
            console=stderr(),
        )

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def tasks(self) -> list[Task]:
        """The bars as they stand."""
        return self._progress.tasks

    def show(self, job: Job) -> None:
        if job["id"] not in self._tasks:
            self._tasks[job["id"]] = self._progress.add_task(
                "", total=None, kind=job["kind"], id=job["id"], numbers=""
            )
        task, progress = self._tasks[job["id"]], job["progress"]
        running = job["state"] == JobState.RUNNING
        if job["state"] == JobState.SUCCEEDED:
            self._progress.update(task, completed=1, total=1)
        elif progress and progress["total"]:
            self._progress.update(task, completed=progress["done"], total=progress["total"])
        self._progress.update(
            task,
            description=escape(plain(job["phase"] if running and job["phase"] else shown(job))),
            numbers=escape(numbers(job)),
        )


def _where(job: Job) -> str:
    """What a waiting person reads; a paused job ends only after somebody has resumed it."""
    if job.get("paused"):
        return f"paused: goes on after `espalier resume {job['id']}`"
    return str(job["state"])


def view() -> View:
    return Bars() if stderr().is_terminal else Lines()


def follow(
    client: Client, ids: Sequence[str], shown: View, stopping: threading.Event | None = None
) -> list[Job]:
    """Return the jobs' documents once all have ended, showing them meanwhile.

    Raises Interrupted when ``stopping`` is set before, Unavailable when the control plane stays
    away for longer than PATIENCE.
    """
    stopping = stopping or threading.Event()
    ended: dict[str, Job] = {}
    heard = time.monotonic()
    with shown:
        while True:
            try:
                for job_id in ids:
                    if job_id not in ended:
                        job = client.get(f"/api/v1/jobs/{job_id}")
                        shown.show(job)
                        if job["state"] in JOB_ENDED:
                            ended[job_id] = job
                heard = time.monotonic()
            except Unavailable:
                if time.monotonic() - heard > PATIENCE:
                    raise
            if len(ended) == len(set(ids)):
                return [ended[job_id] for job_id in ids]
            if stopping.wait(TICK):
                raise Interrupted


def outcome(jobs: Sequence[Job]) -> int:
    """Return the exit code: 0 all succeeded, 1 one failed, 3 none failed and one was cancelled."""
    states = {job["state"] for job in jobs}
    if JobState.FAILED in states:
        return FAILED
    return CANCELLED if JobState.CANCELLED in states else 0
