"""The order of batches: mlx-lm's own, and restorable at any point."""

from typing import Any

import numpy as np
import pytest
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.tuner.trainer import iterate_batches

from worker.engine.data import Batches, Rows, check_targets
from worker.engine.report import BadInput


def make_dataset(rows: int, seed: int = 0) -> Any:
    rng = np.random.RandomState(seed)
    lengths = rng.randint(3, 70, rows)
    tokens = [([int(t) for t in rng.randint(1, 500, n)], int(n) // 3) for n in lengths]
    return CacheDataset(Rows(tokens))


def take(batches: Any, count: int) -> list[list[Any]]:
    return [[part.tolist() for part in next(batches)] for _ in range(count)]


def test_batches_are_mlx_lms() -> None:
    train, valid = make_dataset(23), make_dataset(9, seed=1)
    np.random.seed(5)
    theirs_train = iterate_batches(train, 4, 64, loop=True)
    theirs = take(theirs_train, 3)
    theirs += take(iterate_batches(valid, 4, 64), 2)
    theirs += take(theirs_train, 9)

    ours = Batches(5)
    train_batches = ours(train, 4, 64, loop=True)
    found = take(train_batches, 3)
    found += take(ours(valid, 4, 64), 2)
    found += take(train_batches, 9)
    assert found == theirs


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 6, 13])
def test_a_restored_order_goes_on_where_it_was(taken: int) -> None:
    train, valid = make_dataset(23), make_dataset(9, seed=1)
    whole = Batches(5)
    batches = whole(train, 4, 64, loop=True)
    take(batches, taken)
    state = whole.state()
    expected = [*take(batches, 7), *take(whole(valid, 4, 64), 2)]

    restored = Batches(99)
    restored.restore(state)
    again = [*take(restored(train, 4, 64, loop=True), 7), *take(restored(valid, 4, 64), 2)]
    assert again == expected


def test_rows_are_cut_and_the_longest_is_remembered() -> None:
    batches = Batches(0)
    tokens, spans = next(batches(make_dataset(8), 4, 16, loop=True))
    assert tokens.shape == (4, 16)
    assert max(spans[:, 1].tolist()) == 16
    assert batches.truncated > 16


def test_a_row_without_target_tokens_is_named() -> None:
    rows = CacheDataset(Rows([([1, 2, 3], 1), ([1, 2, 3], 3)]))
    with pytest.raises(BadInput, match=r"train\.jsonl line 2 leaves no target token"):
        check_targets("train", rows, 64)
    long = CacheDataset(Rows([(list(range(100)), 70)]))
    check_targets("train", long, 100)
    with pytest.raises(BadInput, match="line 1"):
        check_targets("train", long, 64)
