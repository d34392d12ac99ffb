"""Loss, perplexity and token count of a model on a split, by mlx-lm's own ``evaluate``."""

import math
import random
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.trainer import default_loss, evaluate

from worker.engine.data import Batches
from worker.engine.report import Job, log


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a split is read, and how. ``batches`` −1 is all of it."""

    batch_size: int
    batches: int
    max_seq_length: int
    seed: int

    def count(self, dataset: Any) -> int:
        """How many batches that is; mlx-lm leaves out rows that do not fill one."""
        full = len(dataset) // self.batch_size
        return int(full if self.batches == -1 else min(full, self.batches))


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


def measure(
    job: Job, model: Any, dataset: Any, limits: Limits, batches: Batches | None = None
) -> Measured:
    """Return what ``mlx_lm.lora --test`` would print, unrounded.

    Without ``batches`` the order is drawn from ``limits.seed`` anew, so that two models are
    measured on the same rows. Raises Cancelled between batches.
    """
    total = limits.count(dataset)
    counts: list[Any] = []

    def loss(model: Any, tokens: Any, spans: Any) -> tuple[Any, Any]:
        value, count = default_loss(model, tokens, spans)
        counts.append(count)
        return value, count

    mean = evaluate(
        model=model,
        dataset=dataset,
        batch_size=limits.batch_size,
        num_batches=limits.batches,
        max_seq_length=limits.max_seq_length,
        loss=loss,
        iterate_batches=batches or Batches(limits.seed),
        progress_callback=lambda: job.advance(len(counts), total, "batches"),
    )
    measured = Measured(float(mean), int(mx.stack(counts).sum().item()))
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
