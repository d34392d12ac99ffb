"""No child outlives its worker, whatever it is doing, stopped or not; and it answers when asked."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from espalier.messages import Event, PhaseEvent, ProgressEvent
from espalier.textsql import write_dataset
from tests.integration.engine.child import Child, Run, make_task
from tests.integration.engine.conftest import SHORT
from worker.engine.report import ORPHANED
from worker.stacks import ASK

ChildRunner = Callable[..., Child]

#: What takes far longer than it takes to hear that the worker is gone.
LONG: dict[str, dict[str, Any]] = {
    "train": SHORT | {"iters": 100_000, "steps_per_eval": 100_000},
    "eval": {"batch_size": 1, "test_batches": -1},
    "fuse": {"batch_size": 1, "test_batches": 1000},
    "quantize": {"batch_size": 1, "test_batches": 1000},
    "export": {"format": "gguf", "type": "f32", "proof_tokens": 512},
}
#: A worker that gives a child its task, stops it by a signal, and waits to be killed.
WORKER = """
import os, signal, subprocess, sys, time
reader, writer = os.pipe()
engine = subprocess.Popen(
    [sys.executable, "-m", "worker.engine"], stdin=subprocess.PIPE, pass_fds=(writer,),
    env=os.environ | {"ESPALIER_EVENTS_FD": str(writer)}, start_new_session=True,
)
engine.stdin.write(sys.stdin.buffer.readline())
engine.stdin.flush()
os.read(reader, 1)
engine.send_signal(signal.SIGSTOP)
print(engine.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="session")
def much(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("much")
    write_dataset(directory, rows=6000, seed=7)
    return directory


@pytest.mark.parametrize(
    ("kind", "when"),
    [("train", PhaseEvent), *((kind, ProgressEvent) for kind in LONG)],
    ids=["train-loading", *(f"{kind}-computing" for kind in LONG)],
)
def test_a_child_ends_with_its_worker(
    kind: str, when: type[Event], model: Path, much: Path, trained: Child, child: ChildRunner
) -> None:
    inputs = {"model": model, "data": much}
    if kind in ("eval", "fuse"):
        inputs["adapter"] = trained.output("adapter")
    told: list[Event] = []

    def hang_up(run: Run, event: Event) -> None:
        if isinstance(event, when) and not told:
            told.append(event)
            run.hang_up()

    ended = child(kind, LONG[kind], inputs, on_event=hang_up)
    assert ended.status == ORPHANED, ended.log
    assert told


def test_a_child_writes_its_stacks_when_it_is_asked_and_goes_on(
    inputs: dict[str, Path], child: ChildRunner
) -> None:
    asked: list[Event] = []

    def ask(run: Run, event: Event) -> None:
        if isinstance(event, ProgressEvent) and not asked:
            asked.append(event)
            run.process.send_signal(ASK)

    ended = child("train", SHORT | {"steps_per_report": 1}, inputs, on_event=ask)
    assert ended.done.state == "succeeded"
    assert "most recent call first" in ended.log
    assert "worker/engine/train/loop.py" in ended.log


@pytest.mark.skipif(sys.platform != "linux", reason="a Mac tells nobody that his parent died")
def test_a_stopped_child_ends_with_its_worker_too(inputs: dict[str, Path], tmp_path: Path) -> None:
    """It hears nothing while it is stopped; the kernel ends it."""
    task = make_task(tmp_path, "train", LONG["train"], inputs)
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(task.model_dump_json().encode() + b"\n")
        worker.stdin.flush()
        engine = psutil.Process(int(worker.stdout.readline()))
        try:
            assert engine.is_running()
            worker.send_signal(signal.SIGKILL)
            until = time.monotonic() + 60
            while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < until, "the engine lives on, stopped"
                time.sleep(0.01)
        finally:
            worker.kill()
            if engine.is_running():
                engine.kill()
