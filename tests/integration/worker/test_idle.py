"""Children without a job: taken, kept, replaced, evicted; real processes, real signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from espalier.messages import Input
from espalier.specs import EvalSpec
from espalier.states import ArtifactKind, Kind
from tests.integration.worker.conftest import ENGINE, ROOT, Place
from tests.integration.worker.fake_control import Attempt, FakeControl
from tests.integration.worker.test_attempts import begin, ended, gone, training
from worker.idle import Idle, Limits
from worker.runner import Runner
from worker.tools import Tools

PLENTY = 1 << 30


@pytest.fixture
def make(tools: Tools, tmp_path: Path) -> Iterator[Callable[..., tuple[Runner, Idle]]]:
    """A runner and its idle children, of the tiny engine."""
    made: list[Idle] = []

    def make(**limits: object) -> tuple[Runner, Idle]:
        given = {"keep_bytes": PLENTY} | limits
        idle = Idle(tmp_path / "idle", Limits(**given), ENGINE)  # type: ignore[arg-type]
        made.append(idle)
        idle.start()
        runner = Runner(replace(tools, idle=idle), tmp_path / "attempts", on_drain=lambda: None)
        return runner, idle

    yield make
    for idle in made:
        idle.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waiting(tmp_path: Path) -> list[psutil.Process]:
    """The children that lie about without a job."""
    found = []
    for child in psutil.Process().children():
        try:
            if ENGINE in child.cmdline() and child.cwd() == str(tmp_path / "idle"):
                found.append(child)
        except psutil.Error:
            continue
    return found


def warm(tmp_path: Path) -> psutil.Process:
    until(lambda: len(waiting(tmp_path)) == 1)
    return waiting(tmp_path)[0]


@pytest.fixture
def evaluation(control: FakeControl, place: Place) -> Callable[..., Attempt]:
    """Place an eval whose base has the given weights."""

    def evaluation(weights: bytes, script: str = "say:x") -> Attempt:
        files = (control.put(weights, "README.md"), control.put(b"{}", "config.json"))
        model = Input(
            role="model",
            ref="team/base",
            kind=ArtifactKind.MODEL,
            commit="0" * 40,
            files=files,
        )
        spec = EvalSpec(model="team/base", data="team/data", text_feature=script)
        return place("", kind=Kind.EVAL, spec=spec, inputs=(model,))

    return evaluation


def process_of(attempt: Attempt) -> int:
    line = next(line for line in attempt.log.splitlines() if line.startswith("job "))
    return int(line.split()[-1])


def succeeded(runner: Runner, attempt: Attempt) -> int:
    """Run it to its end; return the process that did it."""
    runner.run(attempt.assignment.attempt_id)
    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded", attempt.finish
    return process_of(attempt)


def test_a_job_gets_the_warm_child_and_the_next_is_warmed_when_it_is_done(
    make: Callable[..., tuple[Runner, Idle]], control: FakeControl, place: Place, tmp_path: Path
) -> None:
    runner, _ = make()
    first = warm(tmp_path)
    attempt = place("helper env train:100000:0.01")
    thread = begin(runner, attempt)
    training(control, attempt, 5)
    directory = tmp_path / "attempts" / attempt.assignment.attempt_id
    assert process_of(attempt) == first.pid
    assert first.cwd() == str(directory / "scratch")
    assert (directory / "group.json").exists()
    assert list((tmp_path / "idle").glob("*.json")) == []
    assert waiting(tmp_path) == [], "its only slot is taken"
    assert "ESPALIER_TOKEN" not in attempt.log
    attempt.cancel = True
    ended(thread)
    assert attempt.finish is not None
    assert attempt.finish.state == "cancelled"
    gone(first)
    second = warm(tmp_path)
    assert succeeded(runner, place("train:5 output:256")) == second.pid


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_a_warm_child_that_is_gone_or_stopped_is_not_used(
    what: signal.Signals,
    make: Callable[..., tuple[Runner, Idle]],
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.idle.ANSWER_SECONDS", 0.3)
    runner, idle = make()
    first = warm(tmp_path)
    until(lambda: idle._warm is not None and idle._warm.child.ready.is_set())
    first.send_signal(what)
    if what is signal.SIGSTOP:
        until(lambda: first.status() == psutil.STATUS_STOPPED)
    assert succeeded(runner, place("train:1")) != first.pid
    gone(first)


def test_a_warm_child_of_another_environment_is_not_used(
    make: Callable[..., tuple[Runner, Idle]],
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner, _ = make()
    first = warm(tmp_path)
    monkeypatch.setenv("MLX_METAL_FAST_SYNCH", "1")
    assert succeeded(runner, place("train:1")) != first.pid
    gone(first)


def test_an_eval_on_the_same_blobs_gets_the_child_that_has_them(
    make: Callable[..., tuple[Runner, Idle]], evaluation: Callable[..., Attempt], tmp_path: Path
) -> None:
    runner, _ = make(warm=False)
    one, two = evaluation(b"one"), evaluation(b"one", "say:y")
    pid = succeeded(runner, one)
    assert psutil.Process(pid) in psutil.Process().children()
    assert len(list((tmp_path / "idle").glob("*.json"))) == 1
    assert succeeded(runner, two) == pid
    assert "job 1 of" in two.log
    assert "x" not in two.log.split(), "a job hears nothing of another"
    assert succeeded(runner, evaluation(b"two")) != pid


def test_a_job_of_another_kind_gets_a_clean_process_and_all_the_memory(
    make: Callable[..., tuple[Runner, Idle]],
    evaluation: Callable[..., Attempt],
    place: Place,
) -> None:
    runner, _ = make(warm=False)
    kept = psutil.Process(succeeded(runner, evaluation(b"one")))
    attempt = place("train:1")
    assert succeeded(runner, attempt) != kept.pid
    assert "job 0 of" in attempt.log
    gone(kept)


def test_with_a_slot_to_spare_a_base_is_kept_beside_a_job(
    make: Callable[..., tuple[Runner, Idle]],
    evaluation: Callable[..., Attempt],
    place: Place,
) -> None:
    runner, _ = make(warm=False, slots=2)
    kept = succeeded(runner, evaluation(b"one"))
    succeeded(runner, place("train:1"))
    assert succeeded(runner, evaluation(b"one")) == kept


@pytest.mark.parametrize("limits", [{"keep_seconds": 0.0}, {"keep_bytes": 1 << 20}])
def test_a_base_is_not_kept_beyond_its_limits(
    limits: dict[str, object],
    make: Callable[..., tuple[Runner, Idle]],
    evaluation: Callable[..., Attempt],
) -> None:
    runner, _ = make(warm=False, **limits)
    first = succeeded(runner, evaluation(b"one"))
    until(lambda: not psutil.pid_exists(first))
    assert succeeded(runner, evaluation(b"one")) != first


def test_a_base_is_ended_when_it_has_waited_too_long(
    make: Callable[..., tuple[Runner, Idle]],
    evaluation: Callable[..., Attempt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.idle.LOOK_SECONDS", 0.05)
    runner, _ = make(warm=False, keep_seconds=0.2)
    first = succeeded(runner, evaluation(b"one"))
    until(lambda: not psutil.pid_exists(first))


#: A worker with a warm child, waiting to be killed.
WORKER = """
import sys, time
from pathlib import Path
from worker.idle import Idle, Limits
idle = Idle(Path(sys.argv[1]), Limits(), sys.argv[2])
idle.start()
while idle._warm is None or not idle._warm.child.ready.is_set():
    time.sleep(0.01)
print(idle._warm.child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_warm_child_ends_with_its_worker(stopped: bool, tmp_path: Path) -> None:
    """By the end of its stdin; a stopped one by the kernel, or by the worker's next start."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path), "worker.engine"],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as worker:
        assert worker.stdout
        child = psutil.Process(int(worker.stdout.readline()))
        if stopped:
            child.suspend()
        worker.kill()
    if stopped and sys.platform != "linux":
        again = Idle(tmp_path, Limits(warm=False))
        again.start()
        again.close()
    gone(child)
