"""Curves, trees and numbers as people see them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from web.live import Message, Sections, batch, named
from web.pages.charts import HEIGHT, WIDTH, loss_plot, sampled
from web.pages.facts import facts, remaining
from web.pages.format import ago, cell, duration, number, relative, size
from web.pages.jobs import grouped


def test_a_curve_fills_its_box() -> None:
    plot = loss_plot(
        [{"step": 0, "train_loss": 3.0}, {"step": 10, "train_loss": 1.0, "val_loss": 2.0}]
    )
    assert plot
    assert (plot.low, plot.high, plot.last_step) == (1.0, 3.0, 10)
    train = plot.curves[0].points.split()
    assert train == ["0.0,6.0", f"{WIDTH:.1f},{HEIGHT - 6:.1f}"]
    assert loss_plot([{"step": 1, "tokens_per_second": 5.0}]) is None


def test_many_points_are_thinned_and_no_validation_is_lost() -> None:
    points = [{"step": i, **({"val_loss": 1.0} if i % 777 == 0 else {})} for i in range(10_001)]
    kept = sampled(points)
    assert len(kept) <= 2020
    assert [p for p in kept if "val_loss" in p] == [p for p in points if "val_loss" in p]
    assert kept[-1] == points[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "now"), (42, "42 s ago"), (200, "3 min ago"), (7300, "2 h ago"), (200_000, "2 d ago")],
)
def test_relative_times(seconds: float, text: str) -> None:
    assert relative(seconds) == text


def test_the_exact_time_is_one_hover_away() -> None:
    shown = ago("2026-11-20T16:42:14.123Z")
    assert 'title="2026-11-20 16:42:14 UTC"' in shown
    assert 'datetime="2026-11-20T16:42:14Z"' in shown


def test_numbers_for_people() -> None:
    assert [number(v) for v in (0.00001, 2.01623, 12_345, 48.0, True, None)] == [
        "1.00e-05", "2.016", "12\u202f345", "48", "yes", "–",
    ]  # fmt: skip
    assert [size(v) for v in (512, 3.4 * 2**20, 474 * 2**30, None)] == [
        "512 B", "3.4 MiB", "474 GiB", "–",
    ]  # fmt: skip
    assert [duration(v) for v in (4.21, 59, 200, 7500)] == [
        "4.2 s", "59 s", "3 min 20 s", "2 h 5 min",
    ]  # fmt: skip


def test_cells_of_a_column_have_one_width() -> None:
    assert [cell(v, "perplexity") for v in (0.7, 2.01623, 48.25, 12)] == [
        "0.7000", "2.0162", "48.25", "12",
    ]  # fmt: skip
    assert cell(3 << 20, "size_bytes") == "3.0 MiB"


def job(**changes: Any) -> dict[str, Any]:
    started = datetime.now(UTC) - timedelta(seconds=100)
    attempt = {
        "started_at": started.isoformat(),
        "resumed_from_step": 300,
        "peak_memory_bytes": 2**30,
        "memory_bytes": 2**29,
    }
    return {
        "state": "running",
        "progress": {"done": 400, "total": 1000, "unit": "steps"},
        "attempts": [attempt],
        "metrics": {"train_loss": 0.5},
        "started_at": started.isoformat(),
        "finished_at": None,
        **changes,
    }


def test_time_left_is_by_the_measured_pace() -> None:
    assert remaining(job(), (50, 25.0)) == pytest.approx(300)


def test_time_left_without_a_pace_counts_from_where_the_attempt_began() -> None:
    assert remaining(job(), None) == pytest.approx(600, rel=0.01)
    assert remaining(job(state="succeeded"), (50, 25.0)) is None


def test_facts_of_a_running_job() -> None:
    found = {fact.name: (fact.value, fact.more) for fact in facts(job(), 300)}
    assert found["progress"] == ("40%", "400 / 1000 steps")
    assert found["time left"] == ("≈ 5 min 0 s", "")
    assert found["peak memory"] == ("1.0 GiB", "now 512 MiB")


def test_jobs_of_a_pipeline_stand_together_in_its_order() -> None:
    listed: list[dict[str, Any]] = [
        {"id": "4", "pipeline_id": None, "note": "", "name": "t/alone"},
        {"id": "3", "pipeline_id": "p", "note": "two steps", "name": "t/b"},
        {"id": "2", "pipeline_id": "p", "note": "two steps", "name": "t/a"},
    ]
    alone, pipeline = grouped(listed)
    assert (alone.pipeline, [j["id"] for j in alone.jobs]) == (None, ["4"])
    assert (pipeline.pipeline, pipeline.title) == ("p", "two steps")
    assert [j["id"] for j in pipeline.jobs] == ["2", "3"]


# --- What goes over the wire --------------------------------------------------------------


def test_a_message_of_several_lines_is_one_event() -> None:
    assert str(Message("a\nb", id="7.0")) == "id: 7.0\ndata: a\ndata: b\n\n"
    assert str(Message("a\r\nb\rc")) == "data: a\ndata: b\ndata: c\n\n"
    assert str(named("points", [1])) == "event: points\ndata: [1]\n\n"


def test_only_the_last_message_of_a_batch_counts_as_seen() -> None:
    assert [m.id for m in batch([Message("a"), Message("b")], "9")] == [None, "9"]


def test_a_part_is_sent_when_it_reads_differently_and_not_when_only_time_passes() -> None:
    sections = Sections()
    first = sections.changed([("head", "<p><time x>now</time> a</p>"), ("log", "l")])
    assert '<hx-partial hx-target="#head" hx-swap="outerMorph">' in first[0].data
    assert sections.changed([("head", "<p><time x>5 s ago</time> a</p>"), ("log", "l")]) == []
    again = sections.changed([("head", "<p><time x>5 s ago</time> b</p>"), ("log", "l")])
    assert "#log" not in again[0].data
