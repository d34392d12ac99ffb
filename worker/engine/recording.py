"""What a model says of a text, kept on disk: a second one is compared with it, alone in memory.

A model's full distribution is a number for each of its hundred thousand tokens. Kept are the
likeliest ``TOP`` of each target token; the others count as one. By the log-sum inequality the KL
divergence of what is kept is at most the full one, and the closer to it the more weight they have;
how much that is, is told. A vocabulary that is no larger than ``TOP`` is kept whole.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from worker.engine import data
from worker.engine.measure import Measured
from worker.engine.proofs import Comparison, HeldOut
from worker.engine.report import Job

#: Tokens whose probability is kept, of each target token.
TOP = 1024
#: Target tokens whose distribution is kept: a GiB of it. Perplexity goes over all tokens.
MOST = 1 << 17
#: Bytes of distributions in float32 that are looked at together.
_CHUNK = 1 << 25
#: Below this the rest of a distribution is rounding.
_REST = 1e-6


@dataclass(frozen=True, slots=True)
class Recording:
    """``ids`` and ``log_probs``, [kept, top], below ``directory``, and the loss over all tokens.

    ``weight`` is the share of probability that the kept tokens have, on average.
    """

    directory: Path
    measured: Measured
    kept: int
    top: int
    whole: bool
    weight: float

    def read(self) -> tuple[Any, Any]:
        """Return ids (uint32) and log-probabilities (float32), mapped from disk."""
        if not self.kept:
            return np.zeros((0, 0), np.uint32), np.zeros((0, 0), np.float32)
        shape = (self.kept, self.top)
        ids = np.memmap(self.directory / "ids.bin", np.uint32, "r", shape=shape)
        return ids, np.memmap(self.directory / "log_probs.bin", np.float32, "r", shape=shape)


def record(job: Job, model: Any, text: HeldOut, directory: Path) -> Recording:
    """Run a model over held-out text; return its loss, and keep its distributions on disk.

    At most ``8 · TOP`` bytes for each of ``MOST`` target tokens. Raises Cancelled between batches,
    OSError when the disk is full.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kept, top, size, weight, losses = 0, 0, 0, 0.0, _Losses()
    with (directory / "ids.bin").open("wb") as ids, (directory / "log_probs.bin").open("wb") as to:
        for log_probs, targets in _distributions(job, model, text):
            losses.add(log_probs, targets)
            size = int(log_probs.shape[-1])
            top = min(size, TOP)
            wanted = log_probs[: MOST - kept]
            if not wanted.shape[0]:
                continue
            best = mx.argpartition(wanted, kth=size - top, axis=-1)[:, size - top :]
            picked = mx.take_along_axis(wanted, best, -1)
            ids.write(np.array(best.astype(mx.uint32)).tobytes())
            to.write(np.array(picked).tobytes())
            weight += float(mx.exp(picked).sum().item())
            kept += int(wanted.shape[0])
    share = weight / kept if kept else math.nan
    return Recording(directory, losses.measured, kept, top, top == size, share)


def against(job: Job, recording: Recording, model: Any, text: HeldOut) -> Comparison:
    """Compare a model with what was recorded of another over the same text and limits.

    As ``proofs.compare``, without the other model. Raises Cancelled between batches.
    """
    ids, kept = recording.read()
    losses, worst, total, done = _Losses(), 0.0, 0.0, 0
    for log_probs, targets in _distributions(job, model, text):
        losses.add(log_probs, targets)
        count = min(int(log_probs.shape[0]), recording.kept - done)
        if count <= 0:
            continue
        span = slice(done, done + count)
        theirs = mx.take_along_axis(log_probs[:count], mx.array(np.array(ids[span])), -1)
        kl = _divergence(mx.array(np.array(kept[span])), theirs, recording.whole)
        worst = max(worst, float(kl.max().item()))
        total += float(kl.sum().item())
        done += count
    if math.isnan(total):
        worst = math.nan
    mean = total / done if done else math.nan
    # A divergence is not negative; its rounding is.
    return Comparison(max(worst, 0.0), max(mean, 0.0), recording.measured, losses.measured)


def _divergence(ours: Any, theirs: Any, whole: bool) -> Any:
    """KL(ours ‖ theirs) of each row [n] in nats, from log-probabilities [n, top] of same tokens."""
    first = mx.exp(ours)
    kl = (first * (ours - theirs)).sum(-1)
    if whole:
        return kl
    rest = 1 - first.sum(-1)
    other = mx.maximum(1 - mx.exp(theirs).sum(-1), _REST)
    return kl + mx.where(rest > _REST, rest * (mx.log(mx.maximum(rest, _REST)) - mx.log(other)), 0)


def _distributions(job: Job, model: Any, text: HeldOut) -> Iterator[tuple[Any, Any]]:
    """Yield (log-probabilities [n, vocabulary] in float32, targets [n]) of all target tokens.

    In mlx-lm's order of batches; which tokens count is what its loss says.
    """
    limits = text.limits
    total = limits.count(text.dataset)
    parts = limits.drawn(text.dataset, data.Batches(limits.seed))
    for number, (tokens, spans) in enumerate(parts, 1):
        inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
        at = mx.arange(1, inputs.shape[1] + 1)
        mask = mx.logical_and(at >= spans[:, 0:1], at <= spans[:, 1:])
        places = np.flatnonzero(np.array(mask))
        logits = model(inputs)
        logits = logits.reshape(-1, logits.shape[-1])
        mx.eval(logits)
        step = max(1, _CHUNK // (4 * int(logits.shape[-1])))
        for first in range(0, len(places), step):
            where = mx.array(places[first : first + step])
            chosen = logits[where].astype(mx.float32)
            yield chosen - mx.logsumexp(chosen, axis=-1, keepdims=True), targets[where]
        del logits
        job.advance(number // limits.parts, total, "batches")


class _Losses:
    """The sum of −log p(target) and how many targets there were."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def add(self, log_probs: Any, targets: Any) -> None:
        picked = mx.take_along_axis(log_probs, targets[:, None], -1)
        self._sum -= float(picked.sum().item())
        self._count += int(targets.shape[0])

    @property
    def measured(self) -> Measured:
        return Measured(self._sum / self._count if self._count else math.nan, self._count)
