"""A child that hangs, takes too much, or is only slow: a real one, with real signals."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from espalier.messages import EngineTask, Event
from espalier.specs import TrainSpec
from espalier.states import Kind, Reason
from tests.integration.worker.conftest import ENGINE, Place
from tests.integration.worker.fake_control import Attempt, FakeControl
from tests.integration.worker.test_attempts import begin, ended, gone, helper_of, training
from worker.child import Child, Listeners
from worker.runner import Runner
from worker.tools import Tools
from worker.watchdog import Usage

Serve = Callable[..., Runner]


@pytest.fixture
def serve(tools: Tools, tmp_path: Path) -> Serve:
    """A runner whose children get little time, and such memory as is said."""

    def serve(**more: object) -> Runner:
        strict = {"hang_first_seconds": 60.0, "hang_floor_seconds": 3.0} | more
        return Runner(
            replace(tools, **strict),  # type: ignore[arg-type]
            tmp_path / "attempts",
            on_drain=lambda: None,
        )

    return serve


def child_of(attempt: Attempt, tmp_path: Path) -> psutil.Process:
    """The engine that runs for an attempt: the one that works in its directory."""
    directory = str(tmp_path / "attempts" / attempt.assignment.attempt_id / "scratch")
    (found,) = [p for p in psutil.Process().children() if p.cwd() == directory]
    return found


def failed(attempt: Attempt) -> tuple[Reason, str]:
    assert attempt.finish is not None
    assert attempt.finish.state == "failed"
    assert attempt.finish.error is not None
    assert attempt.finish.error.hint
    return attempt.finish.reason, attempt.finish.error.message


def warnings(attempt: Attempt) -> list[str]:
    return [e.message for e in attempt.events if e.type == "notice" and e.level == "warning"]


def test_a_stopped_child_is_found_sampled_and_killed(
    serve: Serve, control: FakeControl, place: Place, tmp_path: Path
) -> None:
    attempt = place("helper train:100000:0.05")
    thread = begin(serve(), attempt)
    training(control, attempt, 5)
    child, helper = child_of(attempt, tmp_path), helper_of(attempt)
    child.send_signal(signal.SIGSTOP)
    ended(thread, 90.0)
    reason, message = failed(attempt)
    assert reason is Reason.HUNG
    assert "stopped by a signal" in message
    assert warnings(attempt) == [message]
    assert f"process {child.pid} (" in attempt.log
    assert f"process {helper.pid} (" in attempt.log
    assert "T (stopped)" in attempt.log or os.uname().sysname == "Darwin"
    gone(child)
    gone(helper)
    assert attempt.checkpoints, "what it had done is kept"


def test_a_deadlocked_child_writes_its_stacks_before_it_is_killed(
    serve: Serve, place: Place
) -> None:
    attempt = place("train:5 hang")
    serve().run(attempt.assignment.attempt_id)
    reason, message = failed(attempt)
    assert reason is Reason.HUNG
    assert "in its phase training" in message
    assert "most recent call first" in attempt.log
    assert " in hang" in attempt.log


def test_a_child_that_never_says_a_word_is_found(serve: Serve, place: Place) -> None:
    attempt = place("load")
    serve(hang_first_seconds=6.0).run(attempt.assignment.attempt_id)
    reason, message = failed(attempt)
    assert reason is Reason.HUNG
    assert "in its phase starting (it had shown none there yet)" in message
    assert "most recent call first" in attempt.log


def test_a_child_that_hangs_after_its_work_has_succeeded(serve: Serve, place: Place) -> None:
    """A driver that never lets go at the end: what was made is complete, and is published."""
    attempt = place("train:5 output:256 done hang")
    serve().run(attempt.assignment.attempt_id)
    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded", attempt.finish
    assert attempt.finish.outputs


def test_a_slow_step_that_computes_is_not_killed(serve: Serve, place: Place) -> None:
    """Many times the floor, and thousands of times as long as any step before."""
    attempt = place("train:5 burn:7 train:6 output:256")
    serve(hang_floor_seconds=1.5).run(attempt.assignment.attempt_id)
    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded", attempt.log
    assert warnings(attempt) == []


def test_a_child_over_its_memory_limit_is_ended(serve: Serve, place: Place) -> None:
    attempt = place("train:5 hold:200000000")
    serve(memory_limit=150_000_000).run(attempt.assignment.attempt_id)
    reason, message = failed(attempt)
    assert reason is Reason.OUT_OF_MEMORY
    assert "the 150,000,000 it may use" in message
    assert warnings(attempt) == [message]
    assert message in attempt.log
    assert attempt.finish is not None
    assert (attempt.finish.peak_memory_bytes or 0) > 200_000_000


def test_a_child_within_its_memory_limit_is_not(
    serve: Serve, control: FakeControl, place: Place
) -> None:
    attempt = place("hold:200000000")
    thread = begin(serve(memory_limit=230_000_000), attempt)
    near = 4  # samples, which come faster so close to the limit

    def looked_at_often() -> bool:
        seen = [r.memory_bytes for r in attempt.reports.values()]
        return sum((memory or 0) > 200_000_000 for memory in seen) >= near

    control.until(looked_at_often)
    attempt.cancel = True
    ended(thread, 90.0)
    assert attempt.finish is not None
    assert attempt.finish.state == "cancelled"
    assert warnings(attempt) == []


def test_a_late_look_counts_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker was stopped, or its Mac asleep: the time meanwhile is not the child's."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    told: list[float] = []
    enough, over = threading.Event(), threading.Event()

    def look(usage: Usage, seconds: float) -> float:
        assert usage.memory >= 0
        told.append(seconds)
        if len(told) == 3:
            enough.set()
        over.wait(0.5)  # ten times as late as it was to be
        return 0.05

    def hear(event: Event) -> None:
        del event

    task = EngineTask(
        attempt_id="a",
        kind=Kind.TRAIN,
        spec=TrainSpec(model="team/base", data="team/data", text_feature="hang"),
        inputs={},
        output_dir=str(tmp_path),
        scratch_dir=str(tmp_path),
    )
    listeners = Listeners(hear, lambda data: None, look, over.set)
    child = Child(tmp_path, tmp_path / "group.json", ENGINE)
    try:
        child.begin(task, listeners, tmp_path / "group.json")
        assert enough.wait(60)
    finally:
        child.kill(at_once=True)
    assert told[1:3] == [0.05, 0.05]
