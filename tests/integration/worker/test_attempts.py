"""What becomes of an attempt: real child, real HTTP, no Celery."""

import errno
import hashlib
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from espalier.messages import Checkpoint, Input
from espalier.states import ArtifactKind, Reason
from espalier.transfer import Transfer
from tests.integration.worker.conftest import Place
from tests.integration.worker.fake_control import TOKEN, Attempt, FakeControl
from worker.cache import BlobCache
from worker.inputs import Inputs
from worker.ledger import Ledger
from worker.runner import Runner
from worker.spool import Spool
from worker.stop import Why
from worker.tools import Tools


def begin(runner: Runner, attempt: Attempt) -> threading.Thread:
    thread = threading.Thread(target=runner.run, args=(attempt.assignment.attempt_id,))
    thread.start()
    return thread


def ended(thread: threading.Thread, seconds: float = 60.0) -> float:
    """Join the runner's thread; return how long that took."""
    began = time.monotonic()
    thread.join(seconds)
    assert not thread.is_alive()
    return time.monotonic() - began


def helper_of(attempt: Attempt) -> psutil.Process:
    line = next(line for line in attempt.log.splitlines() if line.startswith("helper "))
    return psutil.Process(int(line.split()[1]))


def gone(process: psutil.Process) -> None:
    """Wait for a process that is not ours to end; who adopted it may reap it late."""
    until = time.monotonic() + 60.0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, f"{process} lives on"
        time.sleep(0.01)


def training(control: FakeControl, attempt: Attempt, step: int = 1) -> None:
    control.until(lambda: step in attempt.steps())


def test_an_attempt_succeeds(
    runner: Runner, control: FakeControl, place: Place, tmp_path: Path
) -> None:
    attempt = place("inputs train:7 output:200000")
    runner.run(attempt.assignment.attempt_id)

    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded", attempt.finish
    (output,) = attempt.finish.outputs
    assert (output.role, [f.path for f in output.files]) == ("adapter", ["adapters.safetensors"])
    assert control.has(output.files[0].sha256)
    assert attempt.steps() == list(range(1, 8))
    assert [c.step for c in attempt.checkpoints] == [5]
    assert "data splits/valid.jsonl\ndata train.jsonl\nstep 1\n" in attempt.log
    assert attempt.arrivals == sorted(attempt.arrivals)
    assert not list((tmp_path / "attempts").iterdir())
    assert runner.running() == ()


def test_blobs_that_are_here_are_not_fetched_again(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    for _ in range(2):
        runner.run(place("train:1").assignment.attempt_id)
    assert len(control.downloads) == 2  # two files, once


def test_resuming_hands_the_child_the_checkpoint(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    files = (control.put(b"{}", "state.json"),)
    attempt = place("train:8", resume=Checkpoint(step=6, files=files))
    runner.run(attempt.assignment.attempt_id)
    assert attempt.steps() == [7, 8]


def test_tickets_that_are_repeated_or_void_are_dropped(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    attempt = place("train:1000:0.05")
    thread = begin(runner, attempt)
    training(control, attempt)
    runner.run(attempt.assignment.attempt_id)  # returns at once: this worker has it already
    assert attempt.claims == 1
    attempt.cancel = True
    ended(thread)
    runner.run(attempt.assignment.attempt_id)  # refused: it has ended
    runner.run("never-placed")
    assert attempt.claims == 2
    assert attempt.finish is not None
    assert attempt.finish.state == "cancelled"


def test_cancel_ends_the_child_after_a_checkpoint(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    attempt = place("train:1000:0.05")
    thread = begin(runner, attempt)
    training(control, attempt, 2)
    attempt.cancel = True
    assert ended(thread) < 50.0
    assert attempt.finish is not None
    assert (attempt.finish.state, attempt.finish.reason) == ("cancelled", Reason.CANCELLED)
    assert attempt.checkpoints[-1].step == attempt.steps()[-1]


def test_a_child_that_still_loads_is_not_waited_for(
    tools: Tools, control: FakeControl, place: Place, tmp_path: Path
) -> None:
    patient = replace(tools, cancel_grace_seconds=60.0)
    attempt = place("load")
    thread = begin(Runner(patient, tmp_path / "attempts", on_drain=lambda: None), attempt)
    control.until(lambda: any(r.memory_bytes for r in attempt.reports.values()))
    attempt.cancel = True
    ended(thread)
    assert attempt.finish is not None
    assert attempt.finish.state == "cancelled"


def test_a_repeated_ticket_makes_an_attempt_hear_of_orders(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    control.report_seconds = 30.0
    attempt = place("train:1000:0.05")
    thread = begin(runner, attempt)
    training(control, attempt)
    attempt.cancel = True
    runner.run(attempt.assignment.attempt_id)
    assert ended(thread) < 50.0
    assert attempt.finish is not None
    assert attempt.finish.state == "cancelled"


def test_a_child_that_ignores_cancel_and_term_is_killed(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    attempt = place("helper stubborn")
    thread = begin(runner, attempt)
    control.until(lambda: any(e.type == "notice" for e in attempt.events))
    helper = helper_of(attempt)
    attempt.cancel = True
    assert ended(thread) < 50.0
    gone(helper)
    assert attempt.finish is not None
    assert attempt.finish.state == "cancelled"


def test_a_lost_lease_ends_the_group_and_publishes_nothing(
    runner: Runner, control: FakeControl, place: Place, tmp_path: Path
) -> None:
    attempt = place("helper train:1000:0.05 output:256")
    thread = begin(runner, attempt)
    training(control, attempt)
    helper = helper_of(attempt)
    attempt.state = "lost"
    assert ended(thread) < 50.0
    gone(helper)
    assert attempt.finish is None
    assert not list((tmp_path / "attempts").iterdir())


def test_a_stopping_worker_saves_a_checkpoint_and_gives_the_job_back(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    attempt = place("train:1000:0.05")
    thread = begin(runner, attempt)
    training(control, attempt)
    runner.stop(Why.WORKER_STOPPED, within=5.0)
    assert ended(thread) < 50.0
    assert attempt.finish is not None
    assert (attempt.finish.state, attempt.finish.reason) == ("failed", Reason.WORKER_STOPPED)
    assert attempt.checkpoints
    late = place("train:1")
    runner.run(late.assignment.attempt_id)
    assert late.claims == 0


def test_a_stopping_worker_does_not_wait_for_a_control_plane_that_is_away(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    attempt = place("train:1000:0.05")
    thread = begin(runner, attempt)
    training(control, attempt)
    control.away = True
    runner.stop(Why.WORKER_STOPPED, within=1.0)
    ended(thread)


def test_an_outage_loses_nothing_and_keeps_the_order(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    attempt = place("train:40:0.03 output:256")
    thread = begin(runner, attempt)
    training(control, attempt, 3)
    port = control.port
    control.stop()
    time.sleep(0.8)  # the outage itself: the child goes on meanwhile
    control.start(port)
    ended(thread)
    assert attempt.steps() == list(range(1, 41))
    assert attempt.arrivals == sorted(attempt.arrivals)
    assert attempt.log.split("\n")[:-1] == [f"step {n}" for n in range(1, 41)]
    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded"
    assert attempt.checkpoints[-1].step == 40


def test_no_checkpoint_overtakes_the_reports_that_led_to_it(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    attempt = place("train:10:0.02 output:256")
    control.reports_away = True
    thread = begin(runner, attempt)
    uploaded = hashlib.sha256(b"c5" * 1000).hexdigest()
    control.until(lambda: control.has(uploaded))
    assert not attempt.checkpoints
    control.reports_away = False
    ended(thread)
    assert attempt.checkpoints[-1].step == 10
    assert not attempt.overtaken
    assert attempt.steps() == list(range(1, 11))


def test_the_first_metrics_arrive_long_before_the_next_report_is_due(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    control.report_seconds = 30.0
    attempt = place("train:1000:0.05")
    thread = begin(runner, attempt)
    began = time.monotonic()
    training(control, attempt)
    assert time.monotonic() - began < 25.0
    runner.stop(Why.WORKER_STOPPED, within=5.0)
    ended(thread)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("fail:nan_loss", Reason.NAN_LOSS),
        ("say:MemoryError die:6", Reason.OUT_OF_MEMORY),
        ("die:11", Reason.KILLED),
        ("exit:7", Reason.CODE_ERROR),
    ],
)
def test_a_child_that_fails_says_why(
    runner: Runner, place: Place, script: str, reason: Reason
) -> None:
    attempt = place(script)
    runner.run(attempt.assignment.attempt_id)
    assert attempt.finish is not None
    assert (attempt.finish.state, attempt.finish.reason) == ("failed", reason)
    assert attempt.finish.error is not None
    assert attempt.finish.error.message


def test_the_child_learns_no_secret(runner: Runner, place: Place) -> None:
    attempt = place("env")
    runner.run(attempt.assignment.attempt_id)
    assert "ESPALIER_EVENTS_FD" in attempt.log
    assert "PATH" in attempt.log
    assert TOKEN not in attempt.log
    assert "a-secret-key" not in attempt.log


def test_a_model_with_code_in_it_starts_no_child(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    files = (control.put(b'{"auto_map": {"AutoModel": "x.Y"}}', "config.json"),)
    model = Input(
        role="model", ref="team/base", kind=ArtifactKind.MODEL, commit="0" * 40, files=files
    )
    attempt = place("train:1", inputs=(model,))
    runner.run(attempt.assignment.attempt_id)
    assert attempt.finish is not None
    assert attempt.finish.reason is Reason.BAD_INPUT
    assert attempt.finish.error is not None
    assert "config.json" in attempt.finish.error.message
    assert attempt.log == ""


def test_an_input_that_is_gone_is_named(runner: Runner, control: FakeControl, place: Place) -> None:
    attempt = place("train:1")
    for entry in attempt.assignment.inputs[0].files:
        (control.store / entry.sha256).unlink()
    runner.run(attempt.assignment.attempt_id)
    assert attempt.finish is not None
    assert attempt.finish.reason is Reason.INPUT_LOST


def test_memory_is_sampled_from_outside(runner: Runner, control: FakeControl, place: Place) -> None:
    attempt = place("train:1000:0.05")
    thread = begin(runner, attempt)
    control.until(lambda: any(r.memory_bytes for r in attempt.reports.values()))
    runner.stop(Why.WORKER_STOPPED, within=5.0)
    ended(thread)
    assert attempt.finish is not None
    assert (attempt.finish.peak_memory_bytes or 0) > 1 << 20


def test_inputs_that_do_not_fit_are_refused_before_any_is_fetched(
    tools: Tools, transfer: Transfer, control: FakeControl, place: Place, tmp_path: Path
) -> None:
    cache = BlobCache(tmp_path / "small", 1 << 30, transfer, reserve=1 << 62)
    small = replace(tools, inputs=Inputs(cache, tmp_path / "hub", control.url, TOKEN))
    attempt = place("train:1")
    Runner(small, tmp_path / "attempts", on_drain=lambda: None).run(attempt.assignment.attempt_id)
    assert attempt.finish is not None
    assert attempt.finish.reason is Reason.DISK_FULL
    assert attempt.finish.error is not None
    assert "28 more bytes" in attempt.finish.error.message
    assert "ESPALIER_DISK_RESERVE_BYTES" in (attempt.finish.error.hint or "")
    assert control.downloads == []


@pytest.mark.parametrize("at", ["begin", "fetch"])
def test_a_full_disk_is_told_with_what_to_do(
    runner: Runner, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if at == "begin":
        monkeypatch.setattr(Ledger, "begin", full)
    else:
        monkeypatch.setattr(BlobCache, "lay_out", full)
    attempt = place("train:1")
    runner.run(attempt.assignment.attempt_id)
    assert attempt.finish is not None
    assert (attempt.finish.state, attempt.finish.reason) == ("failed", Reason.DISK_FULL)
    assert attempt.finish.error is not None
    assert "No space left" in attempt.finish.error.message
    assert "bytes left" in attempt.finish.error.message
    assert not list((tmp_path / "attempts").glob("*"))


def test_a_disk_that_is_full_while_it_trains_costs_no_report(
    runner: Runner, control: FakeControl, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spool keeps in memory what it cannot write; the checkpoint is published all the same."""

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "_put", full)
    monkeypatch.setattr("worker.ledger._cut_off", full)
    attempt = place("train:7 output:1000")
    runner.run(attempt.assignment.attempt_id)
    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded"
    assert attempt.steps() == list(range(1, 8))
    assert [c.step for c in attempt.checkpoints] == [5]


def test_a_claim_that_was_taken_and_not_answered_is_asked_again(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    control.unanswered = {"claim"}
    attempt = place("train:1")
    thread = begin(runner, attempt)
    control.until(lambda: attempt.claims >= 2)
    control.unanswered = set()
    ended(thread, 60.0)
    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded"


def test_a_pause_does_not_throw_away_work_that_is_done(
    runner: Runner, control: FakeControl, place: Place
) -> None:
    control.store_away = True
    attempt = place("train:3 output:1000")
    thread = begin(runner, attempt)
    control.until(lambda: any(e.type == "phase" and e.name == "publishing" for e in attempt.events))
    attempt.pause = True
    reports = len(attempt.arrivals)
    control.until(lambda: len(attempt.arrivals) > reports + 1)
    control.store_away = False
    ended(thread, 60.0)
    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded"
