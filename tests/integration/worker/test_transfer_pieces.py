"""Pieces of one file, several at a time: in any order, and again after a kill."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from espalier.together import PARALLEL
from espalier.transfer import Transfer, scan
from tests.integration.worker.conftest import ROOT
from tests.integration.worker.fake_control import PART_SIZE, TOKEN, FakeControl
from tests.integration.worker.test_transfer import content

PULL = """
import sys
from pathlib import Path
from espalier import transfer
from espalier.client import Client
from espalier.messages import FileEntry
transfer.SPAN = 1 << 16
with Client(sys.argv[1], sys.argv[2]) as client:
    entry = FileEntry(path="x", sha256=sys.argv[3], size=int(sys.argv[4]))
    transfer.Transfer(client, "/api/v1").pull_file(entry, Path(sys.argv[5]))
"""
SPAN = 1 << 16


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files above 64 KiB come in ranges."""
    monkeypatch.setattr("espalier.transfer.SPAN", SPAN)


def test_parts_of_one_file_go_at_the_same_time(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(content(8 * PART_SIZE))
    (entry,) = scan(tmp_path)
    control.part_delay.clear()
    thread = threading.Thread(target=transfer.push_file, args=(tmp_path / "x", entry))
    thread.start()
    control.until(lambda: len(control.parts_begun) == PARALLEL)
    control.part_delay.set()
    thread.join(60)
    assert control.has(entry.sha256)
    assert sorted(control.parts_begun) == list(range(1, 9))


@pytest.mark.usefixtures("spans")
def test_a_large_file_comes_in_ranges(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    data = content(4 * SPAN + 5)
    entry = control.put(data, "x")
    moved: list[int] = []
    transfer.pull_file(entry, tmp_path / "x", moved.append)
    assert (tmp_path / "x").read_bytes() == data
    assert sum(moved) == len(data)
    starts = range(0, len(data), SPAN)
    wanted = {f"bytes={a}-{min(a + SPAN, len(data)) - 1}" for a in starts}
    assert {asked for _, asked in control.downloads} == wanted
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x"]


@pytest.mark.usefixtures("spans")
def test_a_range_that_broke_goes_on_where_it_stopped(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    data = content(2 * SPAN)
    entry = control.put(data, "x")
    control.cut_after = 30_000
    moved: list[int] = []
    transfer.pull_file(entry, tmp_path / "x", moved.append)
    assert (tmp_path / "x").read_bytes() == data
    assert sum(moved) == len(data)
    rest = {f"bytes=30000-{SPAN - 1}", f"bytes={SPAN + 30000}-{2 * SPAN - 1}"}
    assert rest & {asked for _, asked in control.downloads}


def test_a_download_in_ranges_that_was_killed_goes_on_in_another_process(
    control: FakeControl, tmp_path: Path
) -> None:
    data = content(8 * SPAN)
    entry = control.put(data, "x")
    command = [sys.executable, "-c", PULL, control.url, TOKEN, entry.sha256, str(entry.size)]
    command.append(str(tmp_path / "x"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    control.part_delay.clear()
    control.downloads_before_they_hang = 5
    process = subprocess.Popen(command, env=environment)
    record = tmp_path / f".{entry.sha256}.ranges"
    until = time.monotonic() + 60
    while not (record.exists() and record.read_text().count("\n") == 5):
        assert time.monotonic() < until, "the five ranges are not recorded"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "x").exists()
    first = set(control.downloads)

    control.downloads_before_they_hang = None
    control.part_delay.set()
    control.downloads.clear()
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert (tmp_path / "x").read_bytes() == data
    assert len(control.downloads) == 3
    assert not first & set(control.downloads)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x"]


@pytest.mark.usefixtures("spans")
def test_a_record_that_says_too_much_costs_another_download(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    data = content(3 * SPAN)
    entry = control.put(data, "x")
    (tmp_path / f".{entry.sha256}.part").write_bytes(bytes(len(data)))
    (tmp_path / f".{entry.sha256}.ranges").write_text(f"0 {SPAN}\n0 999999999\n5")
    moved: list[int] = []
    transfer.pull_file(entry, tmp_path / "x", moved.append)
    assert (tmp_path / "x").read_bytes() == data
    assert sum(moved) == len(data)


@pytest.mark.usefixtures("spans")
def test_a_server_that_knows_no_ranges_sends_it_whole(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    data = content(3 * SPAN)
    entry = control.put(data, "x")
    control.ranges = False
    moved: list[int] = []
    transfer.pull_file(entry, tmp_path / "x", moved.append)
    assert (tmp_path / "x").read_bytes() == data
    assert sum(moved) == len(data)
