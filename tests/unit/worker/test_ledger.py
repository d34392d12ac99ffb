"""What an attempt's directory says after a crash, and why such an attempt has ended."""

import time
from pathlib import Path

import psutil
import pytest

from espalier.messages import Assignment, CheckpointEvent, Finish, OutputEvent
from espalier.specs import TrainSpec
from espalier.states import ArtifactKind, Kind, Reason
from worker import machine
from worker.ledger import Ledger
from worker.salvage import crashed, leftovers

ASSIGNMENT = Assignment(
    attempt_id="a1",
    attempt_number=1,
    job_id="j1",
    kind=Kind.TRAIN,
    spec=TrainSpec(model="team/base", data="team/data"),
    inputs=(),
    lease_seconds=180.0,
    report_seconds=5.0,
)
FINISH = Finish(boot_id="boot-1", state="failed", reason=Reason.NAN_LOSS)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.begin(tmp_path / "a1", ASSIGNMENT, "boot-1", 1000.0)


def again(ledger: Ledger) -> Ledger:
    """As the worker's next start reads it."""
    found = Ledger.find(ledger.directory)
    assert found is not None
    return found


def checkpoint(ledger: Ledger, step: int) -> CheckpointEvent:
    directory = ledger.directory / "output" / f"checkpoint-{step}"
    directory.mkdir(parents=True)
    (directory / "adapters.safetensors").write_bytes(b"c")
    return CheckpointEvent(step=step, directory=str(directory), time=0.0)


def output(ledger: Ledger) -> OutputEvent:
    directory = ledger.directory / "output" / "adapter"
    directory.mkdir(parents=True)
    (directory / "adapters.safetensors").write_bytes(b"a")
    kind = ArtifactKind.ADAPTER
    return OutputEvent(role="adapter", kind=kind, directory=str(directory), time=0.0)


def test_everything_that_was_written_down_is_read_again(ledger: Ledger) -> None:
    first, second = checkpoint(ledger, 20), checkpoint(ledger, 40)
    ledger.announced(first)
    ledger.announced(second)
    ledger.published(first)
    assert again(ledger).checkpoint == second
    ledger.published(second)
    made = output(ledger)
    ledger.completed([made])
    ledger.ended(FINISH)
    found = again(ledger)
    assert (found.checkpoint, found.outputs, found.finish) == (None, (made,), FINISH)
    assert (found.attempt_id, found.owner.boots, found.owner.began) == ("a1", ("boot-1",), 1000.0)


def test_no_outputs_are_not_the_same_as_no_end(ledger: Ledger) -> None:
    assert again(ledger).outputs is None
    ledger.completed([])
    assert again(ledger).outputs == ()


def test_a_line_cut_anywhere_says_nothing_and_hides_nothing(ledger: Ledger) -> None:
    event = checkpoint(ledger, 20)
    ledger.announced(event)
    path = ledger.directory / "ledger.jsonl"
    whole = path.read_bytes()
    ledger.ended(FINISH)
    longer = path.read_bytes()
    for length in range(len(whole), len(longer)):
        path.write_bytes(longer[:length])
        assert again(ledger).finish is None
        found = again(ledger)
        found.published(event)
        found.ended(FINISH)
        after = again(ledger)
        assert (after.checkpoint, after.finish) == (None, FINISH)


def test_a_data_directory_may_be_moved(ledger: Ledger, tmp_path: Path) -> None:
    ledger.announced(checkpoint(ledger, 20))
    ledger.completed([output(ledger)])
    elsewhere = tmp_path / "elsewhere"
    ledger.directory.rename(elsewhere)
    found = Ledger.find(elsewhere)
    assert found is not None
    assert found.checkpoint is not None
    assert Path(found.checkpoint.directory).is_relative_to(elsewhere.resolve())
    assert found.outputs is not None
    assert (Path(found.outputs[0].directory) / "adapters.safetensors").read_bytes() == b"a"


def test_nothing_outside_of_the_directory_is_written_down(ledger: Ledger, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    ledger.announced(CheckpointEvent(step=1, directory=str(foreign), time=0.0))
    assert again(ledger).checkpoint is None


def test_who_may_hold_it_is_known_over_any_number_of_starts(ledger: Ledger) -> None:
    for start in range(100):
        asked = again(ledger).ask(f"start-{start}")
        assert asked[0] == "boot-1"
        assert len(asked) < 20
    assert again(ledger).owner.boots[-1] == "start-99"
    again(ledger).inherit("start-99")
    assert again(ledger).owner.boots == ("start-99",)


def test_the_owner_is_written_without_what_nobody_needs(ledger: Ledger) -> None:
    text = (ledger.directory / "attempt.json").read_text()
    assert "spec" not in text
    assert "inputs" not in text


def test_what_is_no_attempt_is_thrown_out(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "attempt.json").write_text('{"attempt_id"')
    (tmp_path / "empty").mkdir()
    assert [found.attempt_id for found in leftovers(tmp_path)] == ["a1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a1"]


def test_why_it_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def panic(moment: float) -> str | None:
        asked.append(moment)
        return "GPU Lock up" if moment < 2000.0 else None

    monkeypatch.setattr(machine, "panic_since", panic)
    panicked = crashed(1000.0)
    assert panicked.code is Reason.KERNEL_PANIC
    assert "GPU Lock up" in panicked.message
    now = time.time()
    monkeypatch.setattr(psutil, "boot_time", lambda: now - 3600.0)
    process, whole = crashed(now - 60.0), crashed(now - 7200.0)
    assert (process.code, whole.code) == (Reason.WORKER_CRASHED, Reason.WORKER_CRASHED)
    assert "worker's process ended" in process.message
    assert "machine was started again" in whole.message
    assert asked == [1000.0, now - 60.0, now - 7200.0]
