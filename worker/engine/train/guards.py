"""What stops a run that cannot come to anything: NaN, infinity, and a loss that has run away."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

#: A step's share of the smoothed loss: about twenty steps count.
_SHARE = 0.05
#: Steps before the smoothed loss means anything.
_WARM = 20
#: Steps in a row that the smoothed loss has to be too high.
PATIENCE = 50


@dataclass(slots=True)
class Course:
    """The smoothed train loss of a run (nats), its lowest, and for how many steps it is too high.

    One batch, or one bad epoch's worth of hard rows, moves the smoothed loss little; a run that
    has diverged sits several nats above where it has been, and stays there. ``rising`` counts the
    steps for which it has been a third of the way there.
    """

    last: float = 0.0
    mean: float = 0.0
    seen: int = 0
    lowest: float | None = None
    above: int = 0
    rising: int = 0

    @property
    def smoothed(self) -> float:
        """The exponential mean, corrected for its start at zero."""
        return self.mean / (1.0 - (1.0 - _SHARE) ** self.seen) if self.seen else 0.0

    def take(self, loss: float, limit: float) -> bool:
        """Take a step's loss; return whether the run has diverged.

        It has when the smoothed loss was more than ``limit`` above its lowest for PATIENCE steps
        in a row; a ``limit`` of 0 is none.
        """
        self.last = loss
        self.seen += 1
        self.mean += _SHARE * (loss - self.mean)
        if self.seen < _WARM or limit == 0:
            return False
        smoothed = self.smoothed
        self.lowest = smoothed if self.lowest is None else min(self.lowest, smoothed)
        self.above = self.above + 1 if smoothed > self.lowest + limit else 0
        self.rising = self.rising + 1 if smoothed > self.lowest + limit / 3 else 0
        return self.above >= PATIENCE

    def is_sound(self, limit: float) -> bool:
        """Tell whether a checkpoint made now may take the place of the one before.

        The smoothed loss is late. So none is made after a step that is itself too high, nor while
        the loss has been rising for no longer than a run that diverges takes to be stopped.
        """
        if limit == 0 or self.lowest is None:
            return True
        return self.last <= self.lowest + limit and not 0 < self.rising <= 2 * PATIENCE


def are_finite(*trees: Any) -> bool:
    """Tell whether every number of these trees of arrays is one; None is an empty tree.

    A sum is finite only if all its numbers are, and five times as fast to have as a look at each;
    one that is not may have overflowed, so that array is looked at.
    """
    arrays = [value for tree in trees if tree is not None for _, value in tree_flatten(tree)]
    floats = [value for value in arrays if mx.issubdtype(value.dtype, mx.floating)]
    if not floats:
        return True
    finite = mx.isfinite(mx.stack([value.sum().astype(mx.float32) for value in floats])).tolist()
    doubted = [value for value, sure in zip(floats, finite, strict=True) if not sure]
    return all(bool(mx.isfinite(value).all().item()) for value in doubted)
