"""One file dealt out to train, valid and test."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import InvalidInput
from espalier.splits import split


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 200), st.integers(0, 5))
def test_a_split_loses_nothing_and_is_the_same_again(count: int, seed: int) -> None:
    rows = list(range(count))
    found = split(rows, seed)
    assert found == split(rows, seed)
    assert sorted(row for part in found.values() for row in part) == rows
    assert all(part and part == sorted(part) for part in found.values())
    assert len(found["train"]) >= len(found["test"])


def test_too_few_rows_or_odd_fractions_do_not_split() -> None:
    with pytest.raises(InvalidInput, match="2 rows cannot be split"):
        split([1, 2])
    for fractions in ((0.5, 0.1, 0.1), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5)):
        with pytest.raises(InvalidInput, match="add up to 1"):
            split([1, 2, 3], 0, fractions)
    assert split([1, 2, 3], 0, (0.5, 0.5, 0.0))["test"] == []
