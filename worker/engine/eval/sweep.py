"""Test loss of one model or of every checkpoint of a run, with how far it can be trusted.

The rows are tokenized and padded once; the base is loaded once; only adapter weights change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.specs import EvalSpec
from worker.engine.adapters import Adapter
from worker.engine.eval.bootstrap import Bootstrap, Interval
from worker.engine.eval.swap import Swap
from worker.engine.measure import Limits, Measured, measure_prepared, perplexity
from worker.engine.report import BadInput, Cell, Job

#: Columns of the table "checkpoints".
COLUMNS = (
    "step",
    "test_loss",
    "test_loss_low",
    "test_loss_high",
    "perplexity",
    "best",
    "remark",
)


@dataclass(frozen=True, slots=True)
class Ruler:
    """What every model is measured with: the same rows, and the same draws of them."""

    job: Job
    limits: Limits
    drawn: Sequence[Any]
    resamples: int

    @classmethod
    def of(cls, job: Job, spec: EvalSpec, drawn: Sequence[Any]) -> "Ruler":
        return cls(job, Limits.of(spec), drawn, spec.bootstrap)

    def measure(self, model: Any) -> Measured:
        return measure_prepared(self.job, model, self.limits, self.drawn)

    def interval(self, measured: Measured) -> Interval | None:
        """The interval of a loss in nats; None where none is wanted or one row is all there is."""
        if measured.rows is None or not self._draws(measured):
            return None
        return self._bootstrap(measured).interval(measured.rows.sums, measured.rows.counts)

    def difference(self, measured: Measured, other: Measured) -> Interval | None:
        """The interval of the first loss less the second, on the same draws of the same rows."""
        if measured.rows is None or other.rows is None or not self._draws(measured):
            return None
        rows = measured.rows
        return self._bootstrap(measured).difference(rows.sums, other.rows.sums, rows.counts)

    def _draws(self, measured: Measured) -> bool:
        return self.resamples > 0 and measured.rows is not None and len(measured.rows) > 1

    def _bootstrap(self, measured: Measured) -> Bootstrap:
        assert measured.rows is not None
        return Bootstrap(len(measured.rows), self.resamples, self.limits.seed)


def overfit_step(losses: dict[int, float]) -> int | None:
    """The step after which the loss only rises, or None when it still falls at the end.

    ``losses`` maps step to test loss.
    """
    steps = sorted(losses)
    turn = len(steps) - 1
    while turn > 0 and losses[steps[turn]] > losses[steps[turn - 1]]:
        turn -= 1
    return steps[turn] if steps and turn < len(steps) - 1 else None


def checkpoints_of(adapter: Adapter) -> dict[int, Path]:
    """Return the weights to test by step; raises BadInput when the run left no checkpoint."""
    if not adapter.checkpoints:
        raise BadInput(
            "The adapter has no checkpoints (<step>_adapters.safetensors): there is nothing to"
            " sweep.",
            "Leave sweep off to test its weights, or train with save_every below iters.",
        )
    paths = dict(adapter.checkpoints)
    # The weights it hands out are a checkpoint's, unless the run ended between two of them.
    paths[adapter.step] = adapter.directory / "adapters.safetensors"
    return dict(sorted(paths.items()))


@dataclass(frozen=True, slots=True)
class Tested:
    """What a step's weights are worth, and how far that can be trusted."""

    measured: Measured
    interval: Interval | None


def sweep(ruler: Ruler, swap: Swap, model: Any, paths: dict[int, Path]) -> dict[int, Tested]:
    """Measure every checkpoint on the same rows; the table so far is told after each."""
    found: dict[int, Tested] = {}
    for step, path in paths.items():
        swap.load(path)
        measured = ruler.measure(model)
        found[step] = Tested(measured, ruler.interval(measured))
        ruler.job.report.metrics(step, test_loss=measured.loss, perplexity=measured.perplexity)
        ruler.job.report.table("checkpoints", COLUMNS, rows_of(found))
    return found


def best_of(found: dict[int, Tested]) -> int:
    """The step of the lowest loss; of equal ones the earliest."""
    return min(sorted(found), key=lambda step: found[step].measured.loss)


def rows_of(found: dict[int, Tested]) -> list[list[Cell]]:
    """Return the rows of the table "checkpoints"."""
    best = best_of(found)
    turn = overfit_step({step: tested.measured.loss for step, tested in found.items()})
    return [
        [
            step,
            tested.measured.loss,
            tested.interval.low if tested.interval else None,
            tested.interval.high if tested.interval else None,
            finite(tested.measured.perplexity),
            step == best,
            "overfitting" if turn is not None and step > turn else "",
        ]
        for step, tested in sorted(found.items())
    ]


def tell_overfitting(job: Job, found: dict[int, Tested]) -> None:
    """Say where the run began to overfit, in a sentence."""
    losses = {step: tested.measured.loss for step, tested in found.items()}
    best, turn = best_of(found), overfit_step(losses)
    if turn is None:
        job.report.notice(
            f"No overfitting seen: the test loss still falls at step {max(losses)}"
            f" (best step {best})."
        )
        return
    job.report.notice(
        f"Overfitting after step {turn}: from there the test loss only rises, from"
        f" {losses[turn]:.4f} to {losses[max(losses)]:.4f} (best step {best}).",
        "warning",
    )


def bounds(name: str, interval: Interval | None) -> dict[str, float]:
    """Return an interval as two metrics, and the perplexity's beside a loss's."""
    if interval is None:
        return {}
    found = {f"{name}_low": interval.low, f"{name}_high": interval.high}
    if name == "test_loss":
        found["perplexity_low"] = perplexity(interval.low)
        found["perplexity_high"] = perplexity(interval.high)
    return found


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if abs(value) < float("inf") else None
