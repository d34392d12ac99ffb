"""What each variant costs, as a table, and which one to take under the limits that were given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from worker.engine.measure import Measured
from worker.engine.proofs import Comparison
from worker.engine.report import Cell

COLUMNS = (
    "variant",
    "bits_per_weight",
    "size_bytes",
    "perplexity",
    "perplexity_increase",
    "mean_kl",
    "max_kl",
    "prompt_tokens_per_second",
    "tokens_per_second",
    "peak_memory_bytes",
    "recommended",
)
#: Where nobody gave a limit, the smallest variant is recommended whose perplexity rises by no more
#: than this fraction, and whose mean KL (in nats) is no larger: on a short text perplexity alone
#: may fall by chance, and KL, which looks at every token's whole distribution, does not.
UNNOTICED = 0.02


@dataclass(frozen=True, slots=True)
class Trial:
    """A model alone in memory: its size in bytes, its loss, its speeds in tokens a second."""

    name: str
    bits_per_weight: float
    size: int
    measured: Measured
    prompt_speed: float
    speed: float
    peak: int


@dataclass(frozen=True, slots=True)
class Variant:
    """A trial beside the original; ``failures`` says which of its limits do not hold."""

    trial: Trial
    found: Comparison
    failures: str = ""

    @property
    def name(self) -> str:
        return self.trial.name

    @property
    def increase(self) -> float:
        return self.found.perplexity_increase


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user allows; None is no limit. ``size`` in bytes, ``increase`` a fraction."""

    size: int | None
    increase: float | None

    def excess(self, variant: Variant) -> float:
        """How far a variant is beyond the limit it misses most, as a fraction of it."""
        over = [0.0]
        if self.size:
            over.append(variant.trial.size / self.size - 1)
        if self.increase is not None:
            # Perplexities, not increases, are compared: the limit may be an increase of 0.
            over.append((1 + variant.increase) / (1 + self.increase) - 1)
        return math.inf if math.isnan(sum(over)) else max(over)


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant to take, if any, and why, in a sentence."""

    variant: Variant | None
    sentence: str


def choose(variants: Sequence[Variant], limits: Limits) -> Choice:
    """Recommend one of the variants that hold all their limits.

    With a limit of perplexity the smallest of them; with one of size alone, the one closest to the
    original (mean KL); without any, the smallest that differs by at most ``UNNOTICED``, or the
    closest where none does that.
    """
    holding = [variant for variant in variants if not variant.failures]
    if not holding:
        return Choice(None, _nearest(variants, limits))
    if limits.increase is not None:
        best, why = _smallest(holding), f"the smallest within {_said(limits)}"
    elif limits.size:
        best, why = _closest(holding), f"the closest to the original within {_said(limits)}"
    elif same := [each for each in holding if _unnoticed(each)]:
        best, why = (
            _smallest(same),
            f"the smallest whose perplexity rises by at most {UNNOTICED:.0%}",
        )
    else:
        best, why = _closest(holding), "the closest to the original; all differ from it noticeably"
    return Choice(best, f"{best.name} is recommended: {why} ({_figures(best)}).")


def _unnoticed(variant: Variant) -> bool:
    return max(variant.increase, variant.found.mean_kl) <= UNNOTICED


def _smallest(variants: Sequence[Variant]) -> Variant:
    return min(variants, key=lambda each: (each.trial.size, each.found.mean_kl))


def _closest(variants: Sequence[Variant]) -> Variant:
    return min(variants, key=lambda each: (each.found.mean_kl, each.trial.size))


def _nearest(variants: Sequence[Variant], limits: Limits) -> str:
    nearest = min(variants, key=limits.excess)
    return (
        f"None of {len(variants)} variants holds its limits; {nearest.name} comes nearest"
        f" ({_figures(nearest)}; {nearest.failures})."
        if len(variants) > 1
        else f"{nearest.failures}."
    )


def _said(limits: Limits) -> str:
    parts = []
    if limits.size:
        parts.append(_size(limits.size))
    if limits.increase is not None:
        parts.append(f"{limits.increase:.2%} more perplexity")
    return " and ".join(parts)


def _size(size: int) -> str:
    """Decimal units, as limits are given in them."""
    for unit, power in (("GB", 1e9), ("MB", 1e6)):
        if size >= power:
            return f"{size / power:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _figures(variant: Variant) -> str:
    return (
        f"{_size(variant.trial.size)}, {variant.trial.bits_per_weight:.2f} bits a weight,"
        f" perplexity {variant.increase:+.2%}, mean KL {variant.found.mean_kl:.3g}"
    )


def table(original: Trial, variants: Sequence[Variant], chosen: Variant | None) -> list[list[Cell]]:
    """Return the rows of the table "variants": the original first."""
    rows = [_row(original, None, None, None, False)]
    for each in variants:
        kl = (each.found.mean_kl, each.found.max_kl)
        rows.append(_row(each.trial, each.increase, *kl, each is chosen))
    return rows


def _row(
    trial: Trial, increase: Cell, mean_kl: Cell, max_kl: Cell, recommended: bool
) -> list[Cell]:
    return [
        trial.name,
        round(trial.bits_per_weight, 3),
        trial.size,
        trial.measured.perplexity,
        increase,
        mean_kl,
        max_kl,
        round(trial.prompt_speed, 1),
        round(trial.speed, 1),
        trial.peak,
        recommended,
    ]
