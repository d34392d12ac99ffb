"""What can be seen of curves and distributions without JavaScript: points of an SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 640, 240
#: Points that one drawn line holds at most.
RESOLUTION = 400


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: its class in the stylesheet and its ``points`` attribute."""

    name: str
    points: str


@dataclass(frozen=True, slots=True)
class Plot:
    curves: tuple[Curve, ...]
    low: float
    high: float
    last_step: int


def loss_plot(points: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Return train and validation loss over steps, scaled to the box; None without points."""
    series = {
        name: [(p["step"], p[key]) for p in points if p.get(key) is not None]
        for name, key in (("train", "train_loss"), ("valid", "val_loss"))
    }
    values = [value for line in series.values() for _, value in line]
    if not values:
        return None
    low, high = min(values), max(values)
    last = max(step for line in series.values() for step, _ in line)
    spread, steps = (high - low) or 1.0, max(last, 1)

    def place(step: int, value: float) -> str:
        y = HEIGHT - 6 - (value - low) / spread * (HEIGHT - 12)
        return f"{step / steps * WIDTH:.1f},{y:.1f}"

    curves = tuple(
        Curve(name, " ".join(place(*pair) for pair in _thin(line)))
        for name, line in series.items()
        if line
    )
    return Plot(curves, low, high, last)


def _thin(line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = max(1, -(-len(line) // RESOLUTION))
    return line if stride == 1 else [*line[:-1:stride], line[-1]]


def sampled(points: Sequence[dict[str, Any]], most: int = 2000) -> list[dict[str, Any]]:
    """Return at most about ``most`` points: every so many, and each with a validation loss."""
    stride = max(1, -(-len(points) // most))
    last = len(points) - 1
    return [p for i, p in enumerate(points) if i % stride == 0 or i == last or "val_loss" in p]
