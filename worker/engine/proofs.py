"""Proofs: what a job made is compared with what it was made from, on held-out text."""

import math
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.datasets import CacheDataset

from worker.engine import data
from worker.engine.measure import Limits, Measured
from worker.engine.models import Loaded
from worker.engine.report import Job, ProofFailed

#: Rows and tokens a row that a model samples from itself when there is no data.
_SAMPLED_ROWS = 8
_SAMPLED_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models over the same tokens: KL(reference ‖ candidate) a token, in nats, and losses."""

    max_kl: float
    mean_kl: float
    reference: Measured
    candidate: Measured

    @property
    def perplexity_increase(self) -> float:
        """The candidate's perplexity over the reference's, less one."""
        return self.candidate.perplexity / self.reference.perplexity - 1


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Text that two models are compared on, how much of it, and where it is from."""

    dataset: Any
    limits: Limits
    source: str


def held_out(job: Job, loaded: Loaded, limits: Limits) -> HeldOut:
    """Return the data's test split, else its valid split, else text the model samples itself."""
    directory = job.input("data")
    if directory:
        for split in ("test", "valid"):
            dataset = data.open_split(directory, split, loaded.tokenizer)
            if dataset is not None:
                return HeldOut(dataset, _fit(limits, dataset), f"the {split} split")
        job.report.notice("The data set has no test and no valid split.", "warning")
    job.report.notice("No held-out text: the models are compared on text sampled from the first.")
    dataset = CacheDataset(data.Rows(sample_rows(loaded, limits.seed)))
    return HeldOut(dataset, _fit(limits, dataset), "text sampled from the model")


def _fit(limits: Limits, dataset: Any) -> Limits:
    return replace(limits, batch_size=min(limits.batch_size, len(dataset)))


def sample_rows(loaded: Loaded, seed: int) -> list[tuple[list[int], int]]:
    """Sample rows of tokens from a model at temperature 1, the same for the same seed."""
    mx.random.seed(seed)
    tokenizer = loaded.tokenizer
    first = tokenizer.bos_token_id
    if first is None:
        first = tokenizer.eos_token_id or 0
    rows = []
    for _ in range(_SAMPLED_ROWS):
        steps = generate_step(
            mx.array([first]),
            loaded.model,
            max_tokens=_SAMPLED_TOKENS,
            sampler=make_sampler(temp=1.0),
        )
        rows.append(([int(first), *(int(token) for token, _ in steps)], 0))
    return rows


def compare(job: Job, reference: Any, candidate: Any, text: HeldOut) -> Comparison:
    """Run both models over the same batches; both are in memory at once.

    The tokens that count are those of mlx-lm's loss. Raises Cancelled between batches.
    """
    limits = text.limits
    total = limits.count(text.dataset)
    parts = limits.drawn(text.dataset, data.Batches(limits.seed))
    worst, kl_sum, losses, count = 0.0, 0.0, [0.0, 0.0], 0
    for done, (tokens, spans) in enumerate(parts, 1):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        at = mx.arange(1, targets.shape[1] + 1)
        mask = mx.logical_and(at >= spans[:, 0:1], at <= spans[:, 1:])
        first, second = (_log_probs(model(inputs)) for model in (reference, candidate))
        kl = mx.where(mask, (mx.exp(first) * (first - second)).sum(-1), 0.0)
        picked = [-mx.take_along_axis(p, targets[..., None], -1)[..., 0] for p in (first, second)]
        sums = [mx.where(mask, loss, 0.0).sum() for loss in picked]
        mx.eval(kl, *sums)
        worst = max(worst, float(kl.max().item()))
        kl_sum += float(kl.sum().item())
        losses = [before + float(part.item()) for before, part in zip(losses, sums, strict=True)]
        count += int(mask.sum().item())
        job.advance(done // limits.parts, total, "batches")
    if math.isnan(kl_sum):
        worst = math.nan
    first_loss, second_loss = (loss / count for loss in losses)
    return Comparison(
        # A divergence is not negative; its rounding is.
        max(worst, 0.0),
        max(kl_sum / count, 0.0),
        Measured(first_loss, count),
        Measured(second_loss, count),
    )


def _log_probs(logits: Any) -> Any:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


class Verdict:
    """Collects proofs of one output; ``close`` raises when one does not hold.

    ``prefix`` names the output where a job has several. One of several that is no good does not
    fail the job (``optional``): it is recorded, not judged, because a proof that failed speaks
    against all that a job made.
    """

    def __init__(self, job: Job, prefix: str = "", optional: bool = False) -> None:
        self._job = job
        self._prefix = prefix
        self._optional = optional
        self._failures: list[str] = []

    @property
    def failures(self) -> str:
        """What does not hold, as half a sentence; empty when all does."""
        return "; ".join(self._failures)

    def at_most(self, name: str, value: float, limit: float | None, detail: str = "") -> None:
        """Record ``value``; with a limit, judge it. A NaN never passes."""
        self._record(name, value, limit, value <= limit if limit is not None else None, detail)

    def at_least(self, name: str, value: float, limit: float | None, detail: str = "") -> None:
        self._record(name, value, limit, value >= limit if limit is not None else None, detail)

    def _record(
        self, name: str, value: float, limit: float | None, ok: bool | None, detail: str
    ) -> None:
        told = value if math.isfinite(value) else 1e300
        if ok is False:
            self._failures.append(f"{name} is {value:.4g}, the limit {limit:.4g}")
        if ok is False and self._optional:
            ok, detail = None, f"does not hold, not published; {detail}"
        name = f"{self._prefix}{name}"
        self._job.report.proof(name, told, limit=limit, ok=ok, detail=detail)

    def close(self, hint: str) -> None:
        """Raise ProofFailed naming every proof that does not hold; the output is not announced."""
        if self._failures:
            raise ProofFailed(f"{self.failures}. Nothing is published.", hint)
