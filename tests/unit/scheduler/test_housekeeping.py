"""The daily sweep: started when due, never twice at once, ended with the scheduler."""

import time
from pathlib import Path

import pytest

from scheduler import housekeeping
from scheduler.housekeeping import Housekeeping


def test_nothing_before_it_is_due(tmp_path: Path) -> None:
    keeper = Housekeeping(("-c", f"open({str(tmp_path / 'ran')!r}, 'w')"))
    keeper.look()
    keeper.stop()
    assert not (tmp_path / "ran").exists()


def test_one_at_a_time_and_gone_with_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "FIRST", 0.0)
    monkeypatch.setattr(housekeeping, "EVERY", 0.0)
    keeper = Housekeeping(("-c", "import time; time.sleep(600)"))
    keeper.look()
    running = keeper._process
    assert running is not None
    keeper.look()
    assert keeper._process is running
    keeper.stop()
    assert running.returncode != 0


def test_a_failed_sweep_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "FIRST", 0.0)
    keeper = Housekeeping(("-c", "raise SystemExit(3)"))
    keeper.look()
    assert keeper._process is not None
    keeper._process.wait(timeout=60)
    keeper.look()
    assert "ended with 3" in caplog.text
    assert keeper._due > time.monotonic() + 80_000
