"""The test loss of every checkpoint as a line, with how far it can be trusted: an SVG's points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from web.pages.blueprint import pages
from web.pages.charts import HEIGHT, WIDTH

#: Room inside the box for a mark at its edge.
_EDGE = 8


@dataclass(frozen=True, slots=True)
class SweepPlot:
    """``line`` and ``band`` are ``points`` attributes, ``best`` where the best checkpoint lies.

    ``overfits`` is where the loss begins to rise only, None where it does not; ``band`` is empty
    without intervals. Losses are in nats.
    """

    line: str
    band: str
    best: tuple[float, float]
    overfits: float | None
    best_step: int
    low: float
    high: float
    first: int
    last: int


@pages.app_template_filter("sweep_plot")
def sweep_plot(tables: Sequence[Mapping[str, Any]]) -> SweepPlot | None:
    """Return the plot of a job's table "checkpoints"; None without one of two steps at least."""
    table = next((t for t in tables if t["name"] == "checkpoints"), None)
    rows = (
        [dict(zip(table["columns"], row, strict=False)) for row in table["rows"]] if table else []
    )
    rows = [row for row in rows if isinstance(row.get("test_loss"), int | float)]
    best = next((row for row in rows if row.get("best")), None)
    if len(rows) < 2 or best is None:
        return None
    edges = [
        row[key] for row in rows for key in ("test_loss_low", "test_loss_high") if row.get(key)
    ]
    values = [row["test_loss"] for row in rows] + edges
    low, high = min(values), max(values)
    first, last = rows[0]["step"], rows[-1]["step"]

    def at(step: int, value: float) -> tuple[float, float]:
        x = _EDGE + (step - first) / max(last - first, 1) * (WIDTH - 2 * _EDGE)
        y = HEIGHT - _EDGE - (value - low) / ((high - low) or 1.0) * (HEIGHT - 2 * _EDGE)
        return round(x, 1), round(y, 1)

    def points(key: str) -> list[tuple[float, float]]:
        return [at(row["step"], row[key]) for row in rows]

    has_band = len(edges) == 2 * len(rows)
    around = [*points("test_loss_high"), *points("test_loss_low")[::-1]] if has_band else []
    rising = next((row["step"] for row in rows if row.get("remark") == "overfitting"), None)
    return SweepPlot(
        line=_text(points("test_loss")),
        band=_text(around),
        best=at(best["step"], best["test_loss"]),
        overfits=at(_before(rows, rising), low)[0] if rising is not None else None,
        best_step=best["step"],
        low=low,
        high=high,
        first=first,
        last=last,
    )


def _before(rows: Sequence[Mapping[str, Any]], step: int) -> int:
    """Return the step before one: from there the loss rises."""
    return int(max((row["step"] for row in rows if row["step"] < step), default=step))


def _text(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
