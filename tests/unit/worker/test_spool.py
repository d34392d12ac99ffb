import errno
import os
from pathlib import Path

import pytest

from espalier.messages import (
    ErrorEvent,
    Event,
    LogChunk,
    MetricsEvent,
    PhaseEvent,
    ProgressEvent,
    Report,
)
from espalier.states import Reason
from worker import spool as module
from worker.disk import is_full, pack, unpack
from worker.spool import Spool


def report(seq: int, text: str = "", offset: int = 0, events: tuple[Event, ...] = ()) -> Report:
    log = (LogChunk(offset=offset, text=text),) if text else ()
    return Report(boot_id="b", seq=seq, events=events or (PhaseEvent(name="x", time=1.0),), log=log)


def metrics(step: int, name: str = "train_loss") -> MetricsEvent:
    return MetricsEvent(step=step, values={name: 1.0}, time=0.0)


def put(spool: Spool, *reports: Report) -> None:
    for item in reports:
        spool.append(item)
    spool.sync()


def drain(spool: Spool) -> list[Report]:
    found = []
    while head := spool.head():
        found.append(head)
        spool.pop()
    return found


def seqs(spool: Spool) -> list[int]:
    return [item.seq for item in drain(spool)]


def steps(reports: list[Report]) -> list[int]:
    return [e.step for r in reports for e in r.events if isinstance(e, MetricsEvent)]


def test_reports_come_out_as_they_went_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    assert spool.head() is None
    put(spool, *(report(seq, "naïve ✓") for seq in (1, 2, 3)))
    assert spool.head() == report(1, "naïve ✓")
    spool.pop()
    put(spool, report(4))
    assert len(spool) == 3
    assert seqs(spool) == [2, 3, 4]


def test_the_next_process_goes_on_where_this_one_was_killed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    put(spool, report(1), report(2), report(3))
    spool.pop()
    # No close: the process is gone. What it had sent is sent again, which costs nothing.
    again = Spool(tmp_path / "spool")
    assert again.last_seq == 3
    assert seqs(again) in ([1, 2, 3], [2, 3])
    third = Spool(tmp_path / "spool")
    assert (third.last_seq, len(third)) == (3, 0)
    put(third, report(4))
    assert seqs(Spool(tmp_path / "spool")) == [4]


@pytest.mark.parametrize("torn", [b"", b"0", b"00000000 r 3", b"\n", b"no line of ours\n"])
def test_a_line_that_is_not_whole_is_left_out(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "spool"
    put(Spool(path), report(1), report(2))
    with path.open("ab") as file:
        file.write(torn)
    again = Spool(path)
    put(again, report(3))
    assert seqs(Spool(path)) == [1, 2, 3]


def test_a_line_cut_anywhere_is_never_read_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    put(Spool(path), report(1, "text\n"), report(2, "more\n"))
    whole = path.read_bytes()
    first = len(whole.splitlines(keepends=True)[0])
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert seqs(Spool(path)) == ([1] if length >= first else [])


def test_a_damaged_line_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    put(Spool(path), *(report(seq, "text\n") for seq in range(1, 5)))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"text", b"tExt")
    path.write_bytes(b"".join(lines))
    assert seqs(Spool(path)) == [1, 3, 4]


def test_lines_carry_their_checksum() -> None:
    assert unpack(pack(b"body of it")) == b"body of it"
    assert unpack(pack(b"body of it")[:-1]) is None
    assert unpack(b"") is None
    assert unpack(b"00000001 body\n") is None


def test_the_file_does_not_grow_while_reports_are_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMPACT_BYTES", 2000)
    spool = Spool(tmp_path / "spool")
    for seq in range(1, 200):
        put(spool, report(seq, "x" * 100))
        spool.pop()
    assert (tmp_path / "spool").stat().st_size < 3000
    assert Spool(tmp_path / "spool").last_seq == 199


def test_above_its_bound_it_takes_no_more_log_and_every_event(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=2000)
    seq = 0
    while spool.takes_log:
        seq += 1
        put(spool, report(seq, "x" * 150))
    assert seq > 3
    put(spool, report(seq + 1))
    assert not spool.takes_log
    assert seqs(spool) == list(range(1, seq + 2))
    assert spool.takes_log


def test_far_above_it_the_oldest_log_goes_and_says_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=20_000)
    offset = 0
    for seq in range(1, 150):
        put(spool, report(seq, "x" * 299 + "\n", offset, (metrics(seq),)))
        offset += 300
    kept = drain(Spool(tmp_path / "spool"))  # as the next process reads it
    assert steps(kept) == list(range(1, 150))
    chunks = [chunk for item in kept for chunk in item.log]
    assert "bytes of log were dropped here" in chunks[0].text
    assert chunks[0].offset == 0
    dropped = int(chunks[0].text.split()[0].strip("[\n"))
    assert dropped == chunks[1].offset, "the note says how much is missing"
    assert [c.offset for c in chunks[1:]] == list(range(dropped, offset, 300)), "the newest stay"


def test_a_week_of_points_is_thinned_and_nothing_else(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=50_000)
    failure = ErrorEvent(code=Reason.NAN_LOSS, message="no", time=0.0)
    put(spool, report(1, events=(failure,)))
    for seq in range(2, 4000):
        bar = ProgressEvent(done=seq, total=4000, unit="steps", time=0.0)
        rare = (metrics(seq, "val_loss"),) if seq % 500 == 0 else ()
        put(spool, report(seq, events=(metrics(seq), bar, *rare)))
        assert (tmp_path / "spool").stat().st_size < 400_000
    kept = drain(spool)
    events = [event for item in kept for event in item.events]
    assert events[0] == failure
    validated = [e.step for e in events if isinstance(e, MetricsEvent) and "val_loss" in e.values]
    assert validated == list(range(500, 4000, 500))
    found = steps(kept)
    assert found == sorted(found)
    assert 100 < len(found) < 3000
    assert found[-1] == 3999


def test_a_full_disk_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "spool")
    put(spool, report(1))
    write = os.write

    def full(fd: int, data: bytes) -> int:
        write(fd, data[:7])  # some of it, then no more
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    put(spool, report(2), report(3))
    put(spool, report(4))
    assert spool.head() == report(1)
    spool.pop()
    assert spool.head() == report(2), "from memory"
    monkeypatch.setattr(os, "write", write)
    put(spool, report(5))
    assert seqs(Spool(tmp_path / "spool")) in ([1, 2, 3, 4, 5], [2, 3, 4, 5])
    assert seqs(spool) == [2, 3, 4, 5]


def test_what_waits_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY_BYTES", 20_000)
    spool = Spool(tmp_path / "spool")

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for seq in range(1, 500):
        put(spool, report(seq, "y" * 400, seq * 400, (metrics(seq), metrics(seq, "val_loss"))))
    kept = drain(spool)
    assert [s for s in steps(kept) if s % 100 == 0], "some of the curve is there"
    assert sum(len(c.text) for item in kept for c in item.log) < 25_000
    assert [item.seq for item in kept] == list(range(1, 500))


def test_a_full_disk_is_known_through_what_it_caused() -> None:
    outer = ValueError("it failed")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_full(outer)
    assert not is_full(OSError(errno.EIO, "I/O error"))
    assert not is_full(None)
