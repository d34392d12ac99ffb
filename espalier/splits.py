"""One file's rows dealt out to train, valid and test. Pure."""

import random
from collections.abc import Sequence
from math import isclose
from typing import TypeVar

from espalier.errors import InvalidInput

SPLITS = ("train", "valid", "test")

T = TypeVar("T")


def split(
    rows: Sequence[T], seed: int = 0, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
) -> dict[str, list[T]]:
    """Deal rows out to train, valid and test: the same for the same rows and ``seed``.

    Each split with a fraction above 0 gets one row at least, and the rows keep their order in it.
    Raises InvalidInput when there are too few rows or the fractions are not a whole.
    """
    if min(fractions) < 0 or not fractions[0] or not isclose(sum(fractions), 1.0):
        raise InvalidInput(f"The fractions {fractions} must add up to 1, with some for train.")
    sizes = [max(1, round(len(rows) * part)) if part else 0 for part in fractions[1:]]
    if len(rows) <= sum(sizes):
        raise InvalidInput(
            f"{len(rows)} rows cannot be split into train, valid and test: that takes 3.",
            errors=[{"loc": ["rows"], "msg": "too few"}],
        )
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)  # noqa: S311  not a secret
    valid, test = sizes
    dealt = {
        "valid": order[:valid],
        "test": order[valid : valid + test],
        "train": order[valid + test :],
    }
    return {name: [rows[i] for i in sorted(dealt[name])] for name in SPLITS}
