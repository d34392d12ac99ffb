"""How far a mean can be trusted: percentile bootstrap over the rows it was made of.

Rows are drawn again with replacement, as many as there are, and the mean is taken anew: of a loss
the mean over the drawn rows' tokens (a ratio: long rows weigh more), of a score the mean over rows.
The middle 95 % of these means are the interval (Efron and Tibshirani, An Introduction to the
Bootstrap, chapters 13 and 14). Two models are compared on the same draws, row by row: what is hard
for both takes no part in their difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

#: The share of the resampled means that lies inside the interval.
CONFIDENCE = 0.95
#: Row numbers held at once: draws × rows.
_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """The bounds between which the middle 95 % of the resampled values lie."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Any) -> "Interval":
        edge = (1 - CONFIDENCE) / 2
        low, high = np.quantile(values, (edge, 1 - edge))
        return cls(float(low), float(high))


class Bootstrap:
    """The draws for ``rows`` rows: the same for the same number of them and ``seed``."""

    def __init__(self, rows: int, resamples: int, seed: int) -> None:
        self._rows, self._resamples, self._seed = rows, resamples, seed

    def means(self, sums: Any, counts: Any | None = None) -> Any:
        """Return the mean of each resample, [resamples] float64.

        ``sums`` [rows]; ``counts`` [rows] are what the sums are over, ones where it is None. A
        resample without anything in it (all counts 0) is NaN.
        """
        sums = np.asarray(sums, np.float64)
        counts = np.ones(self._rows) if counts is None else np.asarray(counts, np.float64)
        found = []
        for drawn in self._drawn():
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
        return np.concatenate(found)

    def interval(self, sums: Any, counts: Any | None = None) -> Interval:
        """Return the interval of the mean."""
        return Interval.of(self.means(sums, counts))

    def difference(self, sums: Any, others: Any, counts: Any | None = None) -> Interval:
        """Return the interval of the first mean less the second, over the same draws."""
        return Interval.of(self.means(sums, counts) - self.means(others, counts))

    def _drawn(self) -> Iterator[Any]:
        """Yield which rows were drawn, [draws, rows], a bounded piece at a time."""
        rng = np.random.default_rng(self._seed)
        step = max(1, _AT_ONCE // self._rows)
        for first in range(0, self._resamples, step):
            yield rng.integers(self._rows, size=(min(step, self._resamples - first), self._rows))
