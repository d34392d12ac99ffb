"""Blobs over real HTTP: nothing travels twice, nothing arrives wrong."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from espalier.bandwidth import Limit, Limits
from espalier.client import Client
from espalier.errors import EspalierError, InvalidInput, NotFound, Unavailable
from espalier.messages import FileEntry
from espalier.transfer import Transfer, blob_path, scan
from tests.integration.worker.conftest import ROOT
from tests.integration.worker.fake_control import PART_SIZE, TOKEN, FakeControl

PUSH = """
import sys
from pathlib import Path
from espalier.client import Client
from espalier.together import PARALLEL
from espalier.transfer import Transfer, blob_path, scan
directory = Path(sys.argv[2])
with Client(sys.argv[1], sys.argv[3]) as client:
    Transfer(client, "/api/v1").push(directory, scan(directory))
"""


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files: empty, small, exactly two parts, and three parts and a bit."""
    folder = tmp_path / "folder"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "empty.txt").touch()
    (folder / "small.json").write_bytes(b"{}")
    (folder / "deep" / "two.bin").write_bytes(content(2 * PART_SIZE, 1))
    (folder / "deep" / "er" / "large.bin").write_bytes(content(3 * PART_SIZE + 5, 2))
    (folder / ".DS_Store").write_bytes(b"not for the store")
    return folder


def test_a_folder_there_and_back(
    transfer: Transfer, control: FakeControl, folder: Path, tmp_path: Path
) -> None:
    entries = scan(folder)
    assert [e.path for e in entries] == [
        "deep/er/large.bin",
        "deep/two.bin",
        "empty.txt",
        "small.json",
    ]
    total = sum(e.size for e in entries)
    moved: list[int] = []
    assert transfer.push(folder, entries, moved.append) == total
    assert sum(moved) == total
    assert all(control.has(e.sha256) for e in entries)

    moved.clear()
    back = tmp_path / "back"
    transfer.pull(back, entries, moved.append)
    assert scan(back) == entries
    assert sum(moved) == total
    assert not list(back.rglob(".*"))


def test_what_is_there_is_not_sent_again(
    transfer: Transfer, control: FakeControl, folder: Path, tmp_path: Path
) -> None:
    entries = scan(folder)
    transfer.push(folder, entries)
    control.parts_received.clear()
    (folder / "new.txt").write_bytes(b"new")
    assert transfer.push(folder, scan(folder)) == 3
    assert len(control.parts_received) == 1

    back = tmp_path / "back"
    transfer.pull(back, entries)
    control.downloads.clear()
    transfer.pull(back, entries)
    assert control.downloads == []


def test_an_upload_that_was_killed_goes_on_where_it_stopped(
    control: FakeControl, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "large.bin").write_bytes(content(8 * PART_SIZE))
    (entry,) = scan(folder)
    upload = f"u-{entry.sha256}"
    command = [sys.executable, "-c", PUSH, control.url, str(folder), TOKEN]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    process = subprocess.Popen(command, env=environment)
    control.until(lambda: len(control.parts_received[upload]) >= 2)
    control.part_delay.clear()  # the next part hangs, so that the kill comes in the middle
    process.send_signal(signal.SIGKILL)
    process.wait()
    control.part_delay.set()
    assert not control.has(entry.sha256)

    subprocess.run(command, env=environment, check=True, timeout=30)
    assert control.has(entry.sha256)
    assert len(control.parts_received[upload]) <= 9  # the part in flight may have come twice


def test_a_download_that_broke_goes_on_where_it_stopped(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    data = content(300_000)
    entry = control.put(data, "x")
    control.cut_after = 100_000
    moved: list[int] = []
    transfer.pull_file(entry, tmp_path / "x", moved.append)
    assert (tmp_path / "x").read_bytes() == data
    assert control.downloads == [(entry.sha256, None), (entry.sha256, "bytes=100000-299999")]
    assert sum(moved) == len(data)


def test_a_download_of_a_killed_process_goes_on(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    data = content(300_000)
    entry = control.put(data, "x")
    (tmp_path / f".{entry.sha256}.part").write_bytes(data[:200_000])
    moved: list[int] = []
    transfer.pull_file(entry, tmp_path / "x", moved.append)
    assert (tmp_path / "x").read_bytes() == data
    assert control.downloads == [(entry.sha256, "bytes=200000-299999")]
    assert sum(moved) == len(data)


def test_a_part_on_disk_that_went_bad_is_fetched_again(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    data = content(300_000)
    entry = control.put(data, "x")
    (tmp_path / f".{entry.sha256}.part").write_bytes(b"\0" * 200_000)
    transfer.pull_file(entry, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data


def test_a_blob_that_is_wrong_in_the_store_is_never_taken(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    entry = control.put(b"right", "x")
    (control.store / entry.sha256).write_bytes(b"wrong")
    with pytest.raises(EspalierError, match=entry.sha256):
        transfer.pull_file(entry, tmp_path / "x")
    assert list(tmp_path.glob("*x*")) == []
    assert list(tmp_path.glob(".*.part")) == []


def test_a_received_part_that_is_wrong_is_sent_again(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    data = content(3 * PART_SIZE)
    (tmp_path / "x").write_bytes(data)
    entry = FileEntry(path="x", sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    control.uploads[f"u-{entry.sha256}"] = {
        "sha256": entry.sha256,
        "size": entry.size,
        "parts": {1: b"\0" * PART_SIZE},
    }
    transfer.push_file(tmp_path / "x", entry)
    assert control.has(entry.sha256)


def test_a_file_that_changes_after_it_was_hashed_is_refused(
    transfer: Transfer, control: FakeControl, folder: Path
) -> None:
    entries = scan(folder)
    (folder / "small.json").write_bytes(b"[]")
    with pytest.raises(InvalidInput):
        transfer.push(folder, entries)


def test_a_blob_the_store_lacks_is_not_found(transfer: Transfer, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        transfer.pull_file(FileEntry(path="x", sha256="0" * 64, size=1), tmp_path / "x")


def test_progress_may_stop_a_transfer(
    transfer: Transfer, control: FakeControl, folder: Path
) -> None:
    class Enough(Exception):
        pass

    def progress(moved: int) -> None:
        if moved:
            raise Enough

    with pytest.raises(Enough):
        transfer.push(folder, scan(folder), progress)


def test_an_outage_in_the_middle_is_waited_for(control: FakeControl, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content(8 * PART_SIZE))
    (entry,) = [e for e in scan(tmp_path) if e.path == "x"]
    port = control.port
    with Client(control.url, TOKEN, backoff=(0.1, 0.2, 0.4, 0.8, 1.6)) as client:
        thread = threading.Thread(target=Transfer(client).push_file, args=(tmp_path / "x", entry))
        thread.start()
        control.until(lambda: len(control.parts_received[f"u-{entry.sha256}"]) >= 2)
        control.stop()
        time.sleep(0.3)
        control.start(port)
        thread.join(20)
    assert control.has(entry.sha256)


def test_an_outage_that_lasts_is_told(
    control: FakeControl, transfer: Transfer, folder: Path
) -> None:
    control.away = True
    with pytest.raises(Unavailable):
        transfer.push(folder, scan(folder))


def test_two_that_want_one_blob_fetch_it_once(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    entry = control.put(content(2_000_000), "x")
    threads = [
        threading.Thread(target=transfer.pull_file, args=(entry, tmp_path / "x")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(control.downloads) == 1
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x"]


# --- What need not travel -------------------------------------------------------------------


def test_two_names_of_one_blob_travel_once(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    entry = control.put(b"bytes", "a")
    transfer.pull(tmp_path, [entry, entry.model_copy(update={"path": "deep/b"})])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "deep" / "b").read_bytes() == b"bytes"
    assert len(control.downloads) == 1


def test_what_a_cache_of_this_machine_has_is_cloned(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    entry = control.put(b"bytes", "a")
    kept = blob_path(tmp_path / "cache", entry.sha256)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"bytes")
    kept.chmod(0o444)
    transfer.pull(tmp_path / "out", [entry], near=tmp_path / "cache")
    assert control.downloads == []
    (tmp_path / "out" / "a").write_bytes(b"mine now")
    assert kept.read_bytes() == b"bytes"


def test_what_a_cache_has_wrong_is_not_taken(
    transfer: Transfer, control: FakeControl, tmp_path: Path
) -> None:
    entry = control.put(b"bytes", "a")
    kept = blob_path(tmp_path / "cache", entry.sha256)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"wrong")
    transfer.pull(tmp_path / "out", [entry], near=tmp_path / "cache")
    assert (tmp_path / "out" / "a").read_bytes() == b"bytes"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


# --- The limit ------------------------------------------------------------------------------


def test_every_byte_counts_against_the_limit_in_its_direction(
    client: Client, control: FakeControl, folder: Path, tmp_path: Path
) -> None:
    waited: list[float] = []
    limits = Limits(
        up=Limit(1 << 20, clock=lambda: 100.0, sleep=waited.append),
        down=Limit(1 << 19, clock=lambda: 100.0, sleep=waited.append),
    )
    transfer = Transfer(client, "/api/v1", limits=limits)
    entries = scan(folder)
    total = sum(entry.size for entry in entries)
    transfer.push(folder, entries)
    # The clock stands still: the last byte is free when all of them have had their time.
    assert max(waited) == pytest.approx(total / (1 << 20) - 0.25)
    waited.clear()
    transfer.pull(tmp_path / "back", entries)
    assert max(waited) == pytest.approx(total / (1 << 19) - 0.25)
