"""The worker's side: a process for a run's services, fed without ever waiting for it."""

import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from pydantic import BaseModel

from espalier.messages import Assignment, Event, MetricsEvent
from espalier.settings import Settings
from espalier.specs import TrainSpec
from espalier.specs.services import services
from worker.integrations.run import End, Point, Run

log = logging.getLogger("worker")

#: Points that wait for a slow service; a run reports some hundreds.
WAITING = 10_000
#: Seconds after which a process that does not end is killed; it ends itself before.
GONE_SECONDS = 90.0

Notice = Callable[[str], None]


class Telling:
    """One attempt's sending process and the queue before it; nothing here ever blocks."""

    def __init__(self, run: Run, notice: Notice) -> None:
        self._notice = notice
        self._queue: queue.Queue[BaseModel | None] = queue.Queue(WAITING)
        self._full = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.integrations"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            text=True,
            start_new_session=True,
        )
        self._queue.put(run)
        for name, target in (("send", self._send), ("hear", self._hear)):
            threading.Thread(target=target, name=f"integrations-{name}", daemon=True).start()

    def hear(self, event: Event) -> None:
        """Take metrics along; other events pass by."""
        if isinstance(event, MetricsEvent):
            self._put(Point(step=event.step, values=event.values, time=event.time))

    def end(self, state: Literal["finished", "failed", "killed"]) -> None:
        """Say how it ended; the process goes on to the end by itself."""
        self._put(End(state=state))
        self._put(None)

    def _put(self, line: BaseModel | None) -> None:
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            if not self._full:
                self._full = True
                self._say("Services of report_to are too slow: some metrics are not sent.")

    def _say(self, message: str) -> None:
        """Tell the run's people, or the log alone once nobody listens."""
        try:
            self._notice(message)
        except Exception as error:  # the attempt has ended meanwhile
            log.warning("%s (%s)", message, error)

    def _send(self) -> None:
        assert self._process.stdin
        with suppress(OSError):  # it has ended: _hear says so
            while (line := self._queue.get()) is not None:
                self._process.stdin.write(line.model_dump_json() + "\n")
                self._process.stdin.flush()
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(GONE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _hear(self) -> None:
        """Pass its warnings on, and say when it ends too early."""
        assert self._process.stdout
        for line in self._process.stdout:
            self._say(line.strip())
        status = self._process.wait()
        if status:
            self._say(f"Services of report_to get no more metrics: their process ended ({status}).")


@contextmanager
def telling(assignment: Assignment, notice: Notice) -> Iterator[Callable[[Event], None]]:
    """Give back what hears a run's events; nothing is started for a job that reports nowhere."""
    spec = assignment.spec
    if not (isinstance(spec, TrainSpec) and spec.report_to):
        yield lambda event: None
        return
    try:
        told = Telling(describe(assignment, spec), notice)
    except OSError as error:
        notice(f"Services of report_to get no metrics: {error}.")
        yield lambda event: None
        return
    state: Literal["finished", "failed"] = "failed"
    try:
        yield told.hear
        state = "finished"
    finally:
        told.end(state)


def describe(assignment: Assignment, spec: TrainSpec) -> Run:
    """Return what services are told of a run."""
    config: dict[str, Any] = spec.model_dump(mode="json", exclude_none=True)
    config |= {f"{item.role}_commit": item.commit for item in assignment.inputs if item.commit}
    stems = (ref.split(":")[-1].split("/")[-1].split("@")[0] for ref in (spec.model, spec.data))
    name = "-".join([*stems, spec.fine_tune_type, assignment.job_id[:8]])
    given = Settings()
    directory = given.tensorboard_dir or given.home / "tensorboard"
    return Run(
        services=services(spec.report_to),
        job=assignment.job_id,
        attempt=assignment.attempt_number,
        name=name,
        project=spec.project_name or "espalier",
        url=f"{given.url.rstrip('/')}/jobs/{assignment.job_id}",
        config=config,
        directory=str(directory.expanduser().resolve()),
    )


def environment() -> dict[str, str]:
    """The worker's environment, with the services' keys and without Espalier's own."""
    return {k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")}
