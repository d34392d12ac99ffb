"""Rows that share a sequence have the losses they have alone; epochs are made of (seed, number)."""

import importlib
from collections import Counter
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.trainer import default_loss

from tests.unit.engine.test_data import make_dataset
from worker.engine.data import padded, target_tokens
from worker.engine.report import BadInput
from worker.engine.train import packing
from worker.engine.train.order import Epochs, epoch
from worker.engine.train.step import part_loss

LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 512,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def make_model(name: str, **more: Any) -> Any:
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(LLAMA | {"model_type": name} | more))
    mx.eval(model.parameters())
    return model


# --- What goes where ----------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [64, 100, 2048])
def test_every_row_is_in_one_sequence_and_none_is_too_long(capacity: int) -> None:
    lengths = np.random.RandomState(1).randint(2, 64, 500).tolist()
    packs = packing.pack(3, 0, lengths, capacity)
    assert Counter(row for one in packs for row in one) == Counter(range(500))
    assert all(sum(lengths[row] for row in one) <= capacity for one in packs)
    assert len(packs) <= 11 / 9 * (sum(lengths) / capacity) + 4


def test_packs_are_the_seeds_and_the_epochs() -> None:
    lengths = np.random.RandomState(1).randint(2, 64, 200).tolist()
    first = packing.pack(3, 0, lengths, 128)
    assert packing.pack(3, 0, lengths, 128) == first
    assert packing.pack(3, 1, lengths, 128) != first
    assert packing.pack(4, 0, lengths, 128) != first


@pytest.mark.parametrize("bucketed", [False, True])
def test_an_epoch_has_every_row_once(bucketed: bool) -> None:
    lengths = np.random.RandomState(1).randint(2, 64, 403).tolist()
    batches = epoch(7, 2, lengths, 4, bucketed=bucketed)
    assert batches.shape == (100, 4)
    assert len(set(batches.reshape(-1).tolist())) == 400
    assert (epoch(7, 2, lengths, 4, bucketed=bucketed) == batches).all()
    assert (epoch(7, 3, lengths, 4, bucketed=bucketed) != batches).any()


def test_buckets_hold_rows_of_like_length() -> None:
    lengths = np.random.RandomState(1).randint(2, 2000, 400).tolist()

    def padding(batches: Any) -> int:
        return sum(4 * max(one) - sum(one) for one in np.array(lengths)[batches].tolist())

    shuffled, bucketed = (epoch(1, 0, lengths, 4, bucketed=b) for b in (False, True))
    assert padding(bucketed) < 0.1 * padding(shuffled)


@pytest.mark.parametrize("capacity", [None, 128])
@pytest.mark.parametrize("taken", [0, 1, 5, 23])
def test_restored_epochs_go_on_where_they_were(taken: int, capacity: int | None) -> None:
    dataset = make_dataset(23)
    whole = Epochs(5, capacity=capacity)
    batches = whole.rows(dataset, 2, 64, loop=True)
    list(islice(batches, taken))
    state = whole.state()
    expected = list(islice(batches, 15))
    restored = Epochs(5, capacity=capacity)
    restored.restore(state)
    assert list(islice(restored.rows(dataset, 2, 64, loop=True), 15)) == expected


def test_a_validation_draws_the_same_rows_each_time_and_moves_nothing() -> None:
    dataset, valid = make_dataset(23), make_dataset(9, seed=1)
    epochs = Epochs(5)
    one = list(epochs.validating().rows(valid, 4, 64))
    batches = epochs.rows(dataset, 4, 64, loop=True)
    next(batches)
    before = epochs.state()
    assert list(epochs.validating().rows(valid, 4, 64)) == one
    assert epochs.state() == before


# --- The same losses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("phi3", {}),
    ],
)
@pytest.mark.parametrize("limit", [40, 512])
def test_losses_and_gradients_are_those_of_the_rows_alone(
    name: str, more: dict[str, Any], limit: int
) -> None:
    """With prompts masked, rows cut at the limit, and padding behind."""
    model = make_model(name, **more)
    rows = [make_dataset(9)[i] for i in range(9)]
    rows = [(tokens[:limit], min(offset, limit - 2)) for tokens, offset in rows]
    lengths = [packing.room(len(tokens), limit) for tokens, _ in rows]
    packs = [[rows[i] for i in one] for one in packing.pack(0, 0, lengths, limit)]
    total = packing.targets(packs, limit)
    assert total == target_tokens(rows, limit)
    arrays = packing.collate(packs, limit)
    (loss, tokens), gradient = nn.value_and_grad(model, packing.packed_loss)(model, *arrays, total)
    assert int(tokens.item()) == total
    (alone, _), expected = nn.value_and_grad(model, part_loss)(model, *padded(rows, limit), total)
    assert float(loss.item()) == pytest.approx(float(alone.item()), abs=1e-5)
    for (at, one), (_, other) in zip(tree_flatten(gradient), tree_flatten(expected), strict=True):
        assert float(mx.abs(one - other).max().item()) < 1e-4, at


def test_a_row_sees_only_itself() -> None:
    """Another neighbour changes nothing, to the last bit."""
    model, rows = make_model("llama"), [make_dataset(3)[i] for i in range(3)]
    losses = []
    for first in rows[:2]:
        shared = [(first[0][:20], 0), rows[2]]
        tokens, numbers, wanted = packing.collate([shared], 512)
        mine = wanted * (numbers == 2)
        losses.append(packing.packed_loss(model, tokens, numbers, mine, 1)[0].item())
    assert losses[0] == losses[1]


def test_a_model_that_packs_well_passes_the_check() -> None:
    assert packing.check(make_model("qwen3"), make_dataset(5), 64) < 1e-5


@pytest.mark.parametrize(
    ("name", "more"),
    [
        (
            "mamba",
            {
                "state_size": 8,
                "conv_kernel": 4,
                "intermediate_size": 64,
                "use_bias": False,
                "use_conv_bias": True,
                "time_step_rank": 8,
            },
        ),
        (
            "gpt2",
            {
                "n_ctx": 512,
                "n_embd": 64,
                "n_head": 4,
                "n_layer": 2,
                "n_positions": 512,
                "layer_norm_epsilon": 1e-5,
            },
        ),
        ("gemma2", {"query_pre_attn_scalar": 16}),
    ],
)
def test_a_model_that_cannot_be_packed_is_refused(name: str, more: dict[str, Any]) -> None:
    """Recurrent layers have no mask to take, learned positions know where a row stands, and

    gemma2 takes one mask for all rows of a batch.
    """
    with pytest.raises(BadInput, match="packing does not hold"):
        packing.check(make_model(name, **more), make_dataset(5), 64)


def test_the_check_measures_what_training_computes() -> None:
    """A model whose layers ignore the mask is found, however close its losses look."""
    model = make_model("llama")
    plain = packing.Inside.make_mask
    try:
        packing.Inside.make_mask = lambda self, size, **_: "causal"  # type: ignore[assignment,method-assign]
        with pytest.raises(BadInput, match="nats off"):
            packing.check(model, make_dataset(5), 64)
    finally:
        packing.Inside.make_mask = plain  # type: ignore[method-assign]


def test_losses_of_whole_rows_are_mlx_lms() -> None:
    model, row = make_model("llama"), make_dataset(1)[0]
    arrays = packing.collate([[row]], 512)
    ours = packing.packed_loss(model, *arrays, arrays[2][:, 1:].sum())[0].item()
    theirs = default_loss(model, *padded([row], 512))[0].item()
    assert ours == pytest.approx(theirs, abs=1e-5)
