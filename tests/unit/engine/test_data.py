"""The order of batches: mlx-lm's own, and restorable at any point."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.tuner.trainer import default_loss, iterate_batches

from worker.engine.data import Batches, Row, Rows, check_targets, padded, split, target_tokens
from worker.engine.report import BadInput


def make_dataset(rows: int, seed: int = 0) -> Any:
    rng = np.random.RandomState(seed)
    lengths = rng.randint(3, 70, rows)
    tokens = [([int(t) for t in rng.randint(1, 500, n)], int(n) // 3) for n in lengths]
    return CacheDataset(Rows(tokens))


def drawn(batches: Batches, dataset: Any, loop: bool = False) -> Iterator[Any]:
    """Whole batches of four, as ``iterate_batches`` yields them."""
    for rows in batches.rows(dataset, 4, 64, loop):
        yield padded(rows, 64)


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
    train_batches = drawn(ours, train, loop=True)
    found = take(train_batches, 3)
    found += take(drawn(ours, valid), 2)
    found += take(train_batches, 9)
    assert found == theirs


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 6, 13])
def test_a_restored_order_goes_on_where_it_was(taken: int) -> None:
    train, valid = make_dataset(23), make_dataset(9, seed=1)
    whole = Batches(5)
    batches = drawn(whole, train, loop=True)
    take(batches, taken)
    state = whole.state()
    expected = [*take(batches, 7), *take(drawn(whole, valid), 2)]

    restored = Batches(99)
    restored.restore(state)
    again = [*take(drawn(restored, train, loop=True), 7), *take(drawn(restored, valid), 2)]
    assert again == expected


def test_rows_are_cut() -> None:
    tokens, spans = padded(next(Batches(0).rows(make_dataset(8), 4, 16, loop=True)), 16)
    assert tokens.shape == (4, 16)
    assert max(spans[:, 1].tolist()) == 16


@pytest.mark.parametrize(
    ("size", "parts"), [(None, [4]), (4, [4]), (9, [4]), (3, [3, 1]), (1, 4 * [1])]
)
def test_a_batch_is_cut_in_its_order(size: int | None, parts: list[int]) -> None:
    rows = next(Batches(0).rows(make_dataset(8), 4, 64))
    cut = split(rows, size)
    assert [len(part) for part in cut] == parts
    assert [row for part in cut for row in part] == rows


@pytest.mark.parametrize("limit", [8, 33, 40, 64, 65, 200])
def test_targets_are_those_of_mlx_lms_loss_however_rows_are_padded(limit: int) -> None:
    for rows in Batches(1).rows(make_dataset(24), 4, limit):
        counted = [counted_by_mlx_lm(part, limit) for part in (rows, *split(rows, 1))]
        assert counted == [target_tokens(part, limit) for part in (rows, *split(rows, 1))]
        assert counted[0] == sum(counted[1:])


def counted_by_mlx_lm(rows: list[Row], limit: int) -> int:
    """The tokens of ``default_loss`` over a model whose answers do not matter."""
    _, count = default_loss(lambda inputs: mx.zeros((*inputs.shape, 500)), *padded(rows, limit))
    return int(count.item())


def test_a_row_without_target_tokens_is_named() -> None:
    rows = CacheDataset(Rows([([1, 2, 3], 1), ([1, 2, 3], 3)]))
    with pytest.raises(BadInput, match=r"train\.jsonl line 2 leaves no target token"):
        check_targets("train", rows, 64)
    long = CacheDataset(Rows([(list(range(100)), 70)]))
    check_targets("train", long, 100)
    with pytest.raises(BadInput, match="line 1"):
        check_targets("train", long, 64)
