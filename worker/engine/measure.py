"""Loss, perplexity and token count of a model on a split, by mlx-lm's own ``evaluate``."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.trainer import evaluate

from espalier.specs import EvalSpec, FuseSpec, QuantizeSpec, TrainSpec
from worker.engine.data import Batches, padded, split
from worker.engine.report import Job, log


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a split is read, and how. ``batches`` −1 is all of it.

    ``rows`` is how many rows of a batch are computed at once: what is read, and what comes out
    but for rounding, does not depend on it.
    """

    batch_size: int
    batches: int
    max_seq_length: int
    seed: int
    rows: int | None = None

    @classmethod
    def of(cls, spec: TrainSpec | EvalSpec | FuseSpec | QuantizeSpec) -> "Limits":
        """What the spec says of its test batches."""
        return cls(
            spec.batch_size,
            spec.test_batches,
            spec.max_seq_length,
            spec.seed,
            spec.micro_batch_size,
        )

    def count(self, dataset: Any) -> int:
        """How many batches that is; mlx-lm leaves out rows that do not fill one."""
        full = len(dataset) // self.batch_size
        return int(full if self.batches == -1 else min(full, self.batches))

    @property
    def parts(self) -> int:
        """In how many parts a batch is computed."""
        return -(-self.batch_size // (self.rows or self.batch_size))

    def drawn(self, dataset: Any, batches: Batches) -> Iterator[Any]:
        """Yield what is computed at once: ``(tokens [rows, T], spans [rows, 2])``."""
        wanted = batches.rows(dataset, self.batch_size, self.max_seq_length)
        for rows in islice(wanted, self.count(dataset)):
            for part in split(rows, self.rows):
                yield padded(part, self.max_seq_length)


@dataclass(frozen=True, slots=True)
class RowLosses:
    """What each row that was measured adds, in the order they were drawn in.

    ``sums`` [rows] float64, nats over the row's target tokens; ``counts`` [rows] int64, how many
    those are. The mean loss is ``sums.sum() / counts.sum()``.
    """

    sums: Any
    counts: Any

    def __len__(self) -> int:
        return len(self.sums)


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean loss over target tokens in nats, its exponential, and how many tokens there were."""

    loss: float
    tokens: int
    rows: RowLosses | None = field(default=None, compare=False, repr=False)

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    def metrics(self) -> dict[str, float]:
        return {
            "test_loss": self.loss,
            "perplexity": self.perplexity,
            "tokens": self.tokens,
        }


def perplexity(loss: float) -> float:
    """The exponential of a loss in nats; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


def row_losses(model: Any, tokens: Any, spans: Any) -> tuple[Any, Any]:
    """Return nats and target tokens of each row, both [rows], float32 and int32.

    The terms of mlx-lm's ``default_loss`` (mlx_lm.tuner.trainer), before they are added up.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    steps = mx.arange(1, targets.shape[1] + 1)
    mask = mx.logical_and(steps >= spans[:, 0:1], steps <= spans[:, 1:])
    terms = nn.losses.cross_entropy(model(inputs), targets) * mask
    return terms.astype(mx.float32).sum(axis=1), mask.sum(axis=1)


def mean_loss(
    model: Any,
    dataset: Any,
    limits: Limits,
    batches: Batches,
    advance: Callable[[], None] | None = None,
) -> tuple[float, int]:
    """Return mlx-lm's ``evaluate``, mean loss over target tokens in nats, and how many those are.

    ``advance`` is called after each part that was computed. Leaves the model in eval mode.
    """
    measured = _measured(model, limits, limits.drawn(dataset, batches), advance)
    return measured.loss, measured.tokens


def _measured(
    model: Any, limits: Limits, drawn: Iterable[Any], advance: Callable[[], None] | None
) -> Measured:
    sums: list[Any] = []
    counts: list[Any] = []

    def loss(model: Any, tokens: Any, spans: Any) -> tuple[Any, Any]:
        nats, targets = row_losses(model, tokens, spans)
        # Kept unevaluated they would hold the part's logits with them.
        mx.eval(nats, targets)
        sums.append(np.array(nats, np.float64))
        counts.append(np.array(targets, np.int64))
        total = targets.sum()
        # A part without a target token has no mean, and no weight either.
        return mx.where(total > 0, nats.sum() / total, 0.0), total

    mean = evaluate(
        model=model,
        dataset=None,
        batch_size=limits.batch_size,
        num_batches=-1,  # `drawn` counts
        max_seq_length=limits.max_seq_length,
        loss=loss,
        iterate_batches=lambda **_: drawn,
        progress_callback=advance,
    )
    rows = RowLosses(np.concatenate(sums), np.concatenate(counts))
    return Measured(float(mean), int(rows.counts.sum()), rows)


def measure(
    job: Job, model: Any, dataset: Any, limits: Limits, batches: Batches | None = None
) -> Measured:
    """Return what ``mlx_lm.lora --test`` would print, unrounded.

    Without ``batches`` the order is drawn from ``limits.seed`` anew, so that two models are
    measured on the same rows. Raises Cancelled between batches.
    """
    drawn = limits.drawn(dataset, batches or Batches(limits.seed))
    return _told(job, model, limits, drawn, limits.count(dataset), limits.parts)


def prepare(dataset: Any, limits: Limits) -> Sequence[Any]:
    """Return the rows that `measure` would draw, tokenized and padded once, for several models.

    Rows of like length are put together: a mean over tokens is the same however they are batched,
    but for rounding, and what pads the shorter ones costs (mlx-lm's batches are not sorted).
    """
    wanted = Batches(limits.seed).rows(dataset, limits.batch_size, limits.max_seq_length)
    rows = [row for batch in islice(wanted, limits.count(dataset)) for row in batch]
    rows.sort(key=lambda row: len(row[0]))
    parts = split(rows, limits.rows or limits.batch_size)
    return [padded(part, limits.max_seq_length) for part in parts]


def measure_prepared(job: Job, model: Any, limits: Limits, drawn: Sequence[Any]) -> Measured:
    """Return what `measure` does, of what `prepare` returned."""
    return _told(job, model, limits, drawn, len(drawn), 1)


def _told(
    job: Job, model: Any, limits: Limits, drawn: Iterable[Any], total: int, parts: int
) -> Measured:
    done = count(1)

    def advance() -> None:
        job.advance(next(done) // parts, total, "batches")

    measured = _measured(model, limits, drawn, advance)
    log.info(
        "loss %.4f, perplexity %.4f over %d tokens",
        measured.loss,
        measured.perplexity,
        measured.tokens,
    )
    return measured


def seed_everything(seed: int) -> None:
    """Seed every generator a library may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    mx.random.seed(seed)
