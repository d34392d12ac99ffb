from pathlib import Path

from espalier.messages import LogChunk, PhaseEvent, Report
from worker.spool import Spool


def report(seq: int, text: str = "") -> Report:
    log = (LogChunk(offset=0, text=text),) if text else ()
    return Report(boot_id="b", seq=seq, events=(PhaseEvent(name="x", time=1.0),), log=log)


def drain(spool: Spool) -> list[int]:
    seqs = []
    while head := spool.head():
        seqs.append(head.seq)
        spool.pop()
    return seqs


def test_reports_come_out_as_they_went_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    assert spool.head() is None
    for seq in (1, 2, 3):
        spool.append(report(seq, "naïve ✓"))
    assert spool.head() == report(1, "naïve ✓")
    spool.pop()
    spool.append(report(4))
    assert len(spool) == 3
    assert drain(spool) == [2, 3, 4]


def test_the_file_does_not_grow_while_reports_are_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for seq in range(1, 50):
        spool.append(report(seq))
        spool.pop()
    assert (tmp_path / "spool").stat().st_size == 0
    spool.append(report(50))
    assert drain(spool) == [50]


def test_above_its_bound_it_keeps_events_and_drops_log_text(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=200)
    for seq in range(1, 6):
        spool.append(report(seq, "x" * 150))
    kept = []
    while head := spool.head():
        kept.append((bool(head.log), len(head.events)))
        spool.pop()
    assert kept == [(True, 1)] + [(False, 1)] * 4
