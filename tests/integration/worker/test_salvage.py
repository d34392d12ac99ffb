"""The worker's process is killed at every stage, started again, and everything arrives once.

The whole worker process with real Celery, Valkey, children and HTTP; the control plane is the
fake one, so that it can be away, forget to answer, and be looked at.
"""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery

from espalier.messages import Finish, Held, NoticeEvent
from espalier.states import Reason
from tests.integration.worker.conftest import Place
from tests.integration.worker.fake_control import Attempt, FakeControl
from tests.integration.worker.test_service import (
    Start,
    broker,
    send,
    start,
    valkey,
    wait,
)
from worker.ledger import Ledger

__all__ = ["broker", "start", "valkey"]  # fixtures: there is one way to start a worker


@pytest.fixture
def attempts(tmp_path: Path) -> Path:
    return tmp_path / "data" / "worker-mac-1" / "attempts"


def killed(process: subprocess.Popen[bytes]) -> None:
    """kill -9 the worker; its child ends with it."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, gone


def eventually(happened: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Look at the disk until something is there."""
    until = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
    return found


def spooled(attempts: Path, attempt: Attempt) -> list[int]:
    """The steps whose metrics wait on the worker's disk."""
    path = attempts / attempt.assignment.attempt_id / "spool.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    reports = [line.split(b" ", 3) for line in lines if b" r " in line[:12]]
    return [
        event["step"]
        for report in reports
        if report[3].endswith(b"}")
        for event in json.loads(report[3])["events"]
        if event["type"] == "metrics"
    ]


def ledger(attempts: Path, attempt: Attempt) -> Ledger:
    found = Ledger.find(attempts / attempt.assignment.attempt_id)
    assert found is not None
    return found


def complete(attempts: Path, attempt: Attempt) -> bool:
    """Say whether the child has ended well and its outputs are written down."""
    found = Ledger.find(attempts / attempt.assignment.attempt_id)
    return bool(found and found.outputs)


def finish_of(attempt: Attempt) -> Finish:
    assert attempt.finish is not None
    return attempt.finish


def finished(control: FakeControl, attempts: Path, attempt: Attempt) -> None:
    """The control plane knows the end, and nothing is left on the disk."""
    control.until(lambda: attempt.finish)
    eventually(lambda: not list(attempts.iterdir()))


def in_order(attempt: Attempt) -> None:
    """Every batch arrived, none counted twice, none before the one before it."""
    firsts = list(dict.fromkeys(attempt.arrivals))
    assert firsts == sorted(firsts)
    assert firsts == list(range(1, len(firsts) + 1))
    assert attempt.steps() == sorted(set(attempt.steps()))
    lines = [line for line in attempt.log.splitlines() if line.startswith("step ")]
    assert lines == [f"step {n}" for n in range(1, len(lines) + 1)]


def test_killed_while_it_trains_in_an_outage(
    start: Start, control: FakeControl, broker: Celery, place: Place, attempts: Path
) -> None:
    process = start()
    attempt = place("train:100000:0.02")
    send(broker, attempt)
    control.until(lambda: 3 in attempt.steps())
    control.away = True
    far = max(attempt.steps()) + 20
    eventually(lambda: max(spooled(attempts, attempt), default=0) > far)
    waiting = spooled(attempts, attempt)
    killed(process)
    assert not attempt.finish
    control.away = False
    start()
    finished(control, attempts, attempt)
    assert (finish_of(attempt).state, finish_of(attempt).reason) == (
        "failed",
        Reason.WORKER_CRASHED,
    )
    in_order(attempt)
    assert set(waiting) <= set(attempt.steps())
    last = attempt.checkpoints[-1].step
    assert last in attempt.steps(), "the curve up to a published checkpoint has no holes"
    assert attempt.steps() == list(range(1, len(attempt.steps()) + 1))
    assert any(isinstance(e, NoticeEvent) for e in attempt.events)


def test_killed_between_announcing_a_checkpoint_and_its_upload(
    start: Start, control: FakeControl, broker: Celery, place: Place, attempts: Path
) -> None:
    process = start()
    control.store_away = True
    attempt = place("train:7 stubborn")
    send(broker, attempt)
    control.until(lambda: any(e.type == "notice" for e in attempt.events))
    assert attempt.checkpoints == []
    killed(process)
    unpublished = ledger(attempts, attempt).checkpoint
    assert unpublished is not None
    assert unpublished.step == 5
    control.store_away = False
    start()
    finished(control, attempts, attempt)
    assert [c.step for c in attempt.checkpoints] == [5]
    assert finish_of(attempt).reason is Reason.WORKER_CRASHED
    in_order(attempt)


def test_killed_between_its_childs_end_and_the_upload(
    start: Start, control: FakeControl, broker: Celery, place: Place, attempts: Path
) -> None:
    process = start()
    control.store_away = True
    attempt = place("train:3 output:200000")
    send(broker, attempt)
    eventually(lambda: complete(attempts, attempt))
    killed(process)
    assert not attempt.finish
    control.store_away = False
    start()
    finished(control, attempts, attempt)
    assert finish_of(attempt).state == "succeeded"
    (output,) = finish_of(attempt).outputs
    assert [control.has(file.sha256) for file in output.files] == [True]
    assert attempt.steps() == [1, 2, 3]
    assert attempt.claims == 1, "nothing ran twice"
    in_order(attempt)


@pytest.mark.parametrize("script", ["train:3 output:1000", "train:3 fail:nan_loss"])
def test_killed_when_its_finish_was_taken_and_not_answered(
    start: Start, control: FakeControl, broker: Celery, place: Place, attempts: Path, script: str
) -> None:
    process = start()
    control.unanswered = {"finish"}
    attempt = place(script)
    send(broker, attempt)
    control.until(lambda: attempt.finish)
    said = attempt.finish
    killed(process)
    assert list(attempts.iterdir())
    control.unanswered = set()
    start()
    eventually(lambda: not list(attempts.iterdir()))
    assert attempt.finish == said
    in_order(attempt)


def test_a_failure_that_was_not_told_is_told_as_it_was(
    start: Start, control: FakeControl, broker: Celery, place: Place, attempts: Path
) -> None:
    process = start()
    attempt = place("train:60:0.05 fail:nan_loss")
    send(broker, attempt)
    control.until(lambda: 2 in attempt.steps())
    control.away = True
    eventually(lambda: ledger(attempts, attempt).finish)
    killed(process)
    control.away = False
    start()
    finished(control, attempts, attempt)
    assert (finish_of(attempt).state, finish_of(attempt).reason) == ("failed", Reason.NAN_LOSS)
    assert attempt.steps() == list(range(1, 61))
    in_order(attempt)


def test_killed_again_in_the_middle_of_the_salvage(
    start: Start, control: FakeControl, broker: Celery, place: Place, attempts: Path
) -> None:
    process = start()
    control.store_away = True
    attempt = place("train:7 output:200000")
    send(broker, attempt)
    eventually(lambda: complete(attempts, attempt))
    killed(process)
    for _ in range(2):
        arrived = len(attempt.arrivals)
        process = start()
        control.until(lambda arrived=arrived: len(attempt.arrivals) > arrived)
        killed(process)
    # One that was killed before it could write down that it holds the attempt.
    once_more = ledger(attempts, attempt)
    asked = once_more.ask("a-start-that-was-killed")
    assert asked[0] == attempt.boot_id
    attempt.boot_id = "a-start-that-was-killed"
    control.store_away = False
    start()
    finished(control, attempts, attempt)
    assert finish_of(attempt).state == "succeeded"
    assert [c.step for c in attempt.checkpoints] == [5]
    assert Held(attempt_id=once_more.attempt_id, boot_id="a-start-that-was-killed") in (
        control.hellos[-1].held
    )
    in_order(attempt)


def test_a_spool_that_was_torn_is_read_up_to_the_tear(
    start: Start, control: FakeControl, broker: Celery, place: Place, attempts: Path
) -> None:
    process = start()
    attempt = place("train:100000:0.02")
    send(broker, attempt)
    control.until(lambda: 1 in attempt.steps())
    control.away = True
    eventually(lambda: len(spooled(attempts, attempt)) > 30)
    killed(process)
    directory = attempts / attempt.assignment.attempt_id
    for name in ("spool.jsonl", "ledger.jsonl"):
        with (directory / name).open("ab") as file:
            file.write(b'0badc0de r 9999 {"boot_id":"x","seq":9999,"events":[{"type":"met')
    control.away = False
    start()
    finished(control, attempts, attempt)
    in_order(attempt)
    assert 9999 not in attempt.reports


def test_sigterm_in_an_outage_keeps_the_work_for_the_next_start(
    start: Start, control: FakeControl, broker: Celery, place: Place, attempts: Path
) -> None:
    process = start()
    attempt = place("train:100000:0.02")
    send(broker, attempt)
    control.until(lambda: 3 in attempt.steps())
    control.away = True
    known = len(attempt.steps())
    eventually(lambda: len(spooled(attempts, attempt)) > known + 20)
    process.send_signal(signal.SIGTERM)
    wait(process)
    assert not attempt.finish
    saved = ledger(attempts, attempt)
    assert saved.checkpoint is not None
    control.away = False
    start()
    finished(control, attempts, attempt)
    assert (finish_of(attempt).state, finish_of(attempt).reason) == (
        "failed",
        Reason.WORKER_STOPPED,
    )
    assert attempt.checkpoints[-1].step == saved.checkpoint.step == attempt.steps()[-1]
    assert attempt.steps() == list(range(1, saved.checkpoint.step + 1))
    in_order(attempt)


def test_what_went_elsewhere_meanwhile_is_thrown_out(
    start: Start, control: FakeControl, broker: Celery, place: Place, attempts: Path
) -> None:
    process = start()
    control.store_away = True
    attempt = place("train:3 output:1000")
    send(broker, attempt)
    eventually(lambda: complete(attempts, attempt))
    killed(process)
    control.store_away, control.inherits = False, False
    arrived = list(attempt.arrivals)
    start()
    eventually(lambda: not list(attempts.iterdir()))
    assert not attempt.finish
    assert attempt.arrivals == arrived, "it says nothing for what it does not hold"
    after = place("train:1")
    send(broker, after)
    control.until(lambda: after.finish)


def test_a_pause_ends_the_child_after_a_checkpoint(
    start: Start, control: FakeControl, broker: Celery, place: Place
) -> None:
    start()
    attempt = place("train:100000:0.02")
    send(broker, attempt)
    control.until(lambda: 3 in attempt.steps())
    attempt.pause = True
    control.until(lambda: attempt.finish)
    assert (finish_of(attempt).state, finish_of(attempt).reason) == ("cancelled", Reason.PAUSED)
    assert attempt.checkpoints[-1].step == attempt.steps()[-1]


def test_a_store_that_is_away_keeps_the_work_and_the_lease(
    start: Start, control: FakeControl, broker: Celery, place: Place
) -> None:
    start()
    control.store_away = True
    attempt = place("train:3 output:200000")
    send(broker, attempt)
    control.until(lambda: any(e.type == "phase" and e.name == "publishing" for e in attempt.events))
    reports = len(attempt.arrivals)
    control.until(lambda: len(attempt.arrivals) > reports + 3)
    control.unanswered, control.store_away = {"finish"}, False
    control.until(lambda: attempt.finishes > 1)
    control.unanswered = set()
    assert finish_of(attempt).state == "succeeded"


def test_a_data_directory_has_one_name_and_a_worker_finds_its_own(
    start: Start, control: FakeControl, tmp_path: Path
) -> None:
    killed(start())
    killed(start())
    first, second = control.hellos
    assert first.installation == second.installation
    shutil.rmtree(tmp_path / "data")
    killed(start())
    assert control.hellos[-1].installation not in (None, first.installation)
