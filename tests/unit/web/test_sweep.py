"""The sweep's chart: where the line, the best checkpoint and the shade lie."""

from typing import Any

import pytest

from web.pages.charts import HEIGHT, WIDTH
from web.pages.sweep import sweep_plot

COLUMNS = ["step", "test_loss", "test_loss_low", "test_loss_high", "perplexity", "best", "remark"]


def table(*rows: list[Any]) -> list[dict[str, Any]]:
    return [{"name": "checkpoints", "columns": COLUMNS, "rows": list(rows)}]


def test_the_best_lies_lowest_and_the_shade_begins_there() -> None:
    plot = sweep_plot(
        table(
            [10, 3.0, 2.8, 3.2, 20.1, False, ""],
            [20, 2.0, 1.8, 2.2, 7.4, True, ""],
            [30, 2.5, 2.3, 2.7, 12.2, False, "overfitting"],
        )
    )
    assert plot is not None
    assert (plot.first, plot.last, plot.best_step, plot.low, plot.high) == (10, 30, 20, 1.8, 3.2)
    line = [tuple(map(float, point.split(","))) for point in plot.line.split()]
    assert plot.best == line[1] == max(line, key=lambda point: point[1])
    assert plot.overfits == plot.best[0] == WIDTH / 2
    assert len(plot.band.split()) == 6
    points = [*line, *(tuple(map(float, p.split(","))) for p in plot.band.split())]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_without_intervals_there_is_no_band_and_without_a_rise_no_shade() -> None:
    plot = sweep_plot(
        table([1, 3.0, None, None, None, False, ""], [2, 2.0, None, None, 7.4, True, ""])
    )
    assert plot is not None
    assert (plot.band, plot.overfits) == ("", None)


@pytest.mark.parametrize(
    "tables", [[], table([1, 3.0, None, None, 20.0, True, ""]), [{"name": "metrics", "rows": []}]]
)
def test_one_checkpoint_makes_no_line(tables: list[dict[str, Any]]) -> None:
    assert sweep_plot(tables) is None
