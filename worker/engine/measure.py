"""Loss, perplexity and token count of a model on a split, by mlx-lm's own ``evaluate``."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.trainer import default_loss, evaluate

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
class Measured:
    """Mean loss over target tokens in nats, its exponential, and how many tokens there were."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def metrics(self) -> dict[str, float]:
        return {
            "test_loss": self.loss,
            "perplexity": self.perplexity,
            "tokens": self.tokens,
        }


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
    counts: list[Any] = []

    def loss(model: Any, tokens: Any, spans: Any) -> tuple[Any, Any]:
        value, count = default_loss(model, tokens, spans)
        counts.append(count)
        # A part without a target token has no mean, and no weight either.
        return mx.where(count > 0, value, 0.0), count

    mean = evaluate(
        model=model,
        dataset=dataset,
        batch_size=limits.batch_size,
        num_batches=-1,  # `drawn` counts
        max_seq_length=limits.max_seq_length,
        loss=loss,
        iterate_batches=lambda **_: limits.drawn(dataset, batches),
        progress_callback=advance,
    )
    return float(mean), int(mx.stack(counts).sum().item())


def measure(
    job: Job, model: Any, dataset: Any, limits: Limits, batches: Batches | None = None
) -> Measured:
    """Return what ``mlx_lm.lora --test`` would print, unrounded.

    Without ``batches`` the order is drawn from ``limits.seed`` anew, so that two models are
    measured on the same rows. Raises Cancelled between batches.
    """
    total, done = limits.count(dataset), count(1)

    def advance() -> None:
        job.advance(next(done) // limits.parts, total, "batches")

    loss, tokens = mean_loss(model, dataset, limits, batches or Batches(limits.seed), advance)
    measured = Measured(loss, tokens)
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
