"""Several rows in one sequence, each seeing only itself: no padding is computed.

Attention is kept inside a row by a block-diagonal causal mask, which mlx-lm's models take from
their cache's ``make_mask``. Positions run on through a sequence: what rotary embeddings make of
two tokens depends on their distance alone, so a row's losses are those it has by itself.
Architectures for which that does not hold (recurrent layers, learned positions) are found by
trying, before a step is taken.

A row has the target tokens that mlx-lm's loss counts, the padding token behind it among them.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.trainer import default_loss

from worker.engine.data import Row, padded
from worker.engine.report import BadInput

#: Rows that share one sequence.
Pack = list[Row]
#: Rows that are packed together: the best fit among many, and still a shuffled epoch.
WINDOW = 4096
#: Nats that a row's loss may differ by, packed and alone, in float32 and in half precision.
_CLOSE, _CLOSE_HALF = 1e-3, 5e-2
#: Rows that are tried, and tokens of each.
_TRIED, _TRIED_TOKENS = 3, 256


def room(tokens: int, max_seq_length: int) -> int:
    """Return the places that a row takes in a sequence: its tokens, and what is padding alone."""
    return min(tokens + 1, max_seq_length)


def pack(seed: int, epoch: int, lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return row numbers by sequence: every row once, none beyond ``capacity`` places.

    Rows are shuffled by (seed, epoch), and within each window the longest are placed first, each
    where it leaves the least room (best fit decreasing: at most 11/9 of the fewest sequences).
    """
    rng = np.random.RandomState([seed, epoch])
    rows = rng.permutation(len(lengths))
    packs: list[list[int]] = []
    for first in range(0, len(rows), WINDOW):
        packs += _fit(
            sorted(rows[first : first + WINDOW], key=lambda i: -lengths[i]), lengths, capacity
        )
    return [packs[i] for i in rng.permutation(len(packs))]


def _fit(rows: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = []
    open_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # packs' numbers
    for row in rows:
        needs = lengths[row]
        left = next((r for r in range(needs, capacity + 1) if open_by_room[r]), None)
        if left is None:
            packs.append([int(row)])
            open_by_room[capacity - needs].append(len(packs) - 1)
        else:
            number = open_by_room[left].pop()
            packs[number].append(int(row))
            open_by_room[left - needs].append(number)
    return packs


def collate(packs: Sequence[Pack], max_seq_length: int) -> tuple[Any, Any, Any]:
    """Return ``(tokens [B, T], rows [B, T], wanted [B, T])``.

    ``rows`` numbers a place's row from 1, 0 for padding; ``wanted`` is 1 where the token is a
    target. T is the longest pack's, on to the next multiple of 32 and one more.
    """
    longest = max(sum(room(len(tokens), max_seq_length) for tokens, _ in one) for one in packs)
    width = min(1 + 32 * -(-longest // 32), max_seq_length)
    tokens: Any = np.zeros((len(packs), width), np.int32)
    rows, wanted = np.zeros_like(tokens), np.zeros_like(tokens)
    for line, one in enumerate(packs):
        at = 0
        for number, (row, offset) in enumerate(one, 1):
            places = room(len(row), max_seq_length)
            tokens[line, at : at + len(row)] = row
            rows[line, at : at + places] = number
            wanted[line, at + max(offset, 1) : at + places] = 1
            at += places
    return mx.array(tokens), mx.array(rows), mx.array(wanted)


def targets(packs: Sequence[Pack], max_seq_length: int) -> int:
    """How many tokens the loss counts in these packs."""
    return sum(
        max(room(len(tokens), max_seq_length) - max(offset, 1), 0)
        for one in packs
        for tokens, offset in one
    )


class Inside:
    """A cache that keeps nothing: it tells a model's layers which tokens see each other."""

    offset = 0

    def __init__(self, rows: Any) -> None:
        """``rows`` [B, T] numbers each place's row."""
        steps = mx.arange(rows.shape[1])
        before = steps[:, None] >= steps[None]
        self._near = steps[:, None] - steps[None]
        self._mask = mx.logical_and(rows[:, None, :, None] == rows[:, None, None, :], before)

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        return keys, values

    def make_mask(
        self, size: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        """Return the mask [B, 1, T, T] (mlx_lm.models.base.create_attention_mask's hook)."""
        if window_size is None:
            return self._mask
        return mx.logical_and(self._mask, self._near < window_size)


def packed_loss(model: Any, tokens: Any, rows: Any, wanted: Any, total: Any) -> tuple[Any, Any]:
    """Return these packs' share of their batch's mean loss, and their target tokens.

    ``total`` is the target tokens of the whole batch: see worker.engine.train.step.part_loss.
    """
    inputs, mask = tokens[:, :-1], wanted[:, 1:]
    logits = model(inputs, cache=[Inside(rows[:, :-1])] * len(model.layers))
    losses = nn.losses.cross_entropy(logits, tokens[:, 1:]) * mask
    return losses.astype(mx.float32).sum() / total, mask.sum()


def check(model: Any, dataset: Any, max_seq_length: int) -> float:
    """Return by how much rows' losses differ packed and alone, in nats a token.

    Raises BadInput for a model whose rows see each other, or that cannot be packed at all.
    """
    limit = min(max_seq_length, _TRIED_TOKENS)
    tried = [
        (tokens[:limit], min(offset, limit - 2))
        for tokens, offset in map(dataset.__getitem__, range(min(_TRIED, len(dataset))))
    ]
    model.eval()
    try:
        alone = [float(default_loss(model, *padded([row], limit + 1))[0].item()) for row in tried]
        # Two sequences: some models take one mask for a whole batch.
        packs, width = [tried, tried[::-1]], sum(limit + 1 for _ in tried)
        found = _losses(model, collate(packs, width), len(tried))
        differs = float(np.abs(found - np.array([alone, alone[::-1]])).max())
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise _unpackable(f"its layers do not take a mask ({error!s:.100})") from error
    finally:
        model.train()
    half = any(p.dtype in (mx.float16, mx.bfloat16) for p in _floats(model))
    if not differs <= (_CLOSE_HALF if half else _CLOSE):
        raise _unpackable(f"a row's loss is {differs:.3g} nats off when other rows stand before it")
    return differs


def _losses(model: Any, batch: tuple[Any, Any, Any], rows: int) -> Any:
    """Return the mean loss of each row of each pack, [packs, rows]."""
    tokens, numbers, wanted = batch
    logits = model(tokens[:, :-1], cache=[Inside(numbers[:, :-1])] * len(model.layers))
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), tokens[:, 1:])
    mine = [wanted[:, 1:] * (numbers[:, 1:] == row) for row in range(1, rows + 1)]
    return np.array(mx.stack([(losses * one).sum(1) / one.sum(1) for one in mine], 1))


def _floats(model: Any) -> list[Any]:
    return [value for _, value in tree_flatten(model.parameters())]


def _unpackable(why: str) -> BadInput:
    return BadInput(
        f"packing does not hold for this model: {why}.",
        "Leave packing off; order bucketed pads little, too.",
    )
