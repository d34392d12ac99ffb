"""Runs ``python -m worker.engine`` as the worker does, and keeps all it says."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from espalier.messages import (
    EVENT,
    CheckpointEvent,
    DoneEvent,
    EngineTask,
    ErrorEvent,
    Event,
    MetricsEvent,
    NoticeEvent,
    OutputEvent,
    ProofEvent,
    TableEvent,
)
from espalier.specs import SPECS
from espalier.states import Kind
from worker.engine.__main__ import execute
from worker.engine.report import Job, Orders, Reporter

E = TypeVar("E")


@dataclass
class Child:
    """A finished child: its exit status, its events in order, and its log."""

    status: int
    events: list[Event]
    log: str
    directory: Path

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def error(self) -> ErrorEvent:
        return self.all(ErrorEvent)[0]

    @property
    def done(self) -> DoneEvent:
        assert self.status == 0, self.log
        return self.all(DoneEvent)[0]

    def output(self, role: str) -> Path:
        found = [e for e in self.all(OutputEvent) if e.role == role]
        assert found, self.log
        return Path(found[0].directory)

    def series(self, name: str) -> dict[int, float]:
        """A metric by step."""
        return {e.step: e.values[name] for e in self.all(MetricsEvent) if name in e.values}

    def proofs(self) -> dict[str, ProofEvent]:
        return {event.name: event for event in self.all(ProofEvent)}

    def tables(self) -> dict[str, TableEvent]:
        return {event.name: event for event in self.all(TableEvent)}

    @property
    def notices(self) -> str:
        return "\n".join(event.message for event in self.all(NoticeEvent))

    @property
    def checkpoints(self) -> dict[int, Path]:
        return {event.step: Path(event.directory) for event in self.all(CheckpointEvent)}


@dataclass
class Run:
    """A child that is running. ``on_event`` is called with each event as it comes."""

    process: subprocess.Popen[bytes]
    directory: Path
    events: list[Event] = field(default_factory=list)

    def order(self, name: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"order": name}).encode() + b"\n")
        self.process.stdin.flush()

    def hang_up(self) -> None:
        """Close stdin, as the death of the worker does."""
        assert self.process.stdin
        self.process.stdin.close()


def make_task(
    directory: Path,
    kind: str,
    spec: dict[str, Any],
    inputs: dict[str, Path],
    resume: Path | None = None,
) -> EngineTask:
    """A task below ``directory``, with references made up for its inputs."""
    refs = {"model": "team/model", "data": "team/data", "adapter": "team/adapter"}
    # Roles with a number, and adapters by their weights, are the spec's to name.
    named = {role: refs[role] for role in inputs if role in refs}
    if "adapters" in spec:
        named.pop("adapter")
    if kind == "train" and "adapter" in named:
        named["resume_adapter_file"] = named.pop("adapter")
    for name in ("output", "scratch"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    return EngineTask(
        attempt_id="attempt",
        kind=Kind(kind),
        spec=SPECS[Kind(kind)].model_validate(named | spec),
        inputs={role: str(path) for role, path in inputs.items()},
        output_dir=str(directory / "output"),
        scratch_dir=str(directory / "scratch"),
        resume_dir=str(resume) if resume else None,
    )


def run_inside(
    directory: Path,
    kind: str,
    spec: dict[str, Any],
    inputs: dict[str, Path],
    resume: Path | None = None,
) -> Child:
    """Run one task in this process: the same engine, without the seconds a process takes."""
    said = StringIO()
    task = make_task(directory, kind, spec, inputs, resume)
    status = execute(Job(task, Reporter(said), Orders(StringIO())))
    events = [EVENT.validate_json(line) for line in said.getvalue().splitlines()]
    return Child(status, events, said.getvalue(), directory)


def run_child(
    directory: Path,
    kind: str,
    spec: dict[str, Any],
    inputs: dict[str, Path],
    resume: Path | None = None,
    on_event: Callable[[Run, Event], None] = lambda run, event: None,
    patience: float = 240,
) -> Child:
    """Run one task to its end below ``directory``."""
    task = make_task(directory, kind, spec, inputs, resume)
    reader, writer = os.pipe()
    with (directory / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.engine"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            env=os.environ | {"ESPALIER_EVENTS_FD": str(writer)},
            start_new_session=True,
        )
    os.close(writer)
    assert process.stdin
    process.stdin.write(task.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    run = Run(process, directory)
    watchdog = threading.Timer(patience, process.kill)
    watchdog.start()
    try:
        with os.fdopen(reader, encoding="utf-8") as lines:
            for line in lines:
                run.events.append(EVENT.validate_json(line))
                on_event(run, run.events[-1])
        status = process.wait()
    finally:
        watchdog.cancel()
        process.stdin.close()
    return Child(status, run.events, (directory / "log.txt").read_text(), directory)
