"""The ladder's decisions: what is changed next, and when there is nothing left to change."""

from typing import Any

import pytest

from espalier.states import Kind
from scheduler.lifecycle.ladder import MEMORY, Rung, next_rung, size

GIB = 1 << 30
SPECS: dict[Kind, dict[str, Any]] = {
    Kind.TRAIN: {"model": "team/base", "data": "team/sql"},
    Kind.EVAL: {"model": "team/base", "data": "team/sql"},
    Kind.FUSE: {"model": "team/base", "adapter": "team/tuned"},
    Kind.QUANTIZE: {"model": "team/base"},
    Kind.EXPORT: {"model": "team/base"},
}


def climbed(
    kind: Kind, spec: dict[str, Any], worker: int = 16 * GIB, **others: int
) -> list[tuple[str, int | bool, int | bool]]:
    """Every rung from the top to the foot; a worker with more memory is moved to, the least first.

    The job fails on each, as one that fits nowhere does.
    """
    overrides: dict[str, Any] = {}
    taken = []
    while rung := next_rung(kind, SPECS[kind] | spec, overrides, worker, others):
        taken.append((rung.name, rung.before, rung.after))
        if rung.name == MEMORY:
            worker = min(memory for memory in others.values() if memory >= rung.after)
        else:
            overrides[rung.name] = rung.after
        assert len(taken) < 100
    return taken


def test_training_halves_its_parts_then_recomputes_then_moves() -> None:
    assert climbed(Kind.TRAIN, {"batch_size": 8}, studio=64 * GIB, mini=16 * GIB, pro=32 * GIB) == [
        ("micro_batch_size", 8, 4),
        ("micro_batch_size", 4, 2),
        ("micro_batch_size", 2, 1),
        ("grad_checkpoint", False, True),
        (MEMORY, 16 * GIB, 16 * GIB + 1),
        (MEMORY, 32 * GIB, 32 * GIB + 1),
    ]


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ({"batch_size": 1}, []),
        ({"batch_size": 6}, [3, 1]),
        ({"batch_size": 5}, [2, 1]),
        ({"batch_size": 32, "micro_batch_size": 4}, [2, 1]),
        ({"batch_size": 4, "micro_batch_size": 1}, []),
        ({"batch_size": 2, "micro_batch_size": 4096}, [1]),
    ],
)
def test_parts_start_from_what_was_asked_for(spec: dict[str, Any], sizes: list[int]) -> None:
    taken = climbed(Kind.TRAIN, spec)
    assert [after for name, _, after in taken if name == "micro_batch_size"] == sizes
    assert taken[len(sizes) :] == [("grad_checkpoint", False, True)]


def test_grad_checkpoint_that_was_asked_for_is_no_rung() -> None:
    assert climbed(Kind.TRAIN, {"batch_size": 2, "grad_checkpoint": True}) == [
        ("micro_batch_size", 2, 1)
    ]


@pytest.mark.parametrize("kind", [Kind.EVAL, Kind.FUSE, Kind.QUANTIZE])
def test_other_kinds_compute_fewer_rows_then_move(kind: Kind) -> None:
    assert climbed(kind, {"batch_size": 4}, pro=32 * GIB) == [
        ("micro_batch_size", 4, 2),
        ("micro_batch_size", 2, 1),
        (MEMORY, 16 * GIB, 16 * GIB + 1),
    ]


def test_an_export_has_no_batch_and_moves() -> None:
    assert climbed(Kind.EXPORT, {}, pro=32 * GIB) == [(MEMORY, 16 * GIB, 16 * GIB + 1)]
    assert climbed(Kind.EXPORT, {}, mini=16 * GIB, old=8 * GIB) == []


def test_a_model_that_does_not_even_load_moves_at_once() -> None:
    spec = SPECS[Kind.TRAIN] | {"batch_size": 8}
    rung = next_rung(Kind.TRAIN, spec, {}, 16 * GIB, {"pro": 32 * GIB}, loading=True)
    assert rung
    assert rung.name == MEMORY
    assert next_rung(Kind.TRAIN, spec, {}, 32 * GIB, {"pro": 32 * GIB}, loading=True) is None


def test_what_a_rung_says() -> None:
    spec = SPECS[Kind.TRAIN] | {"batch_size": 5}
    first = next_rung(Kind.TRAIN, spec, {}, 16 * GIB, {})
    assert first == Rung(
        "micro_batch_size",
        5,
        2,
        "2 rows are computed at once instead of 5, a batch in 3 parts; it stays 5 rows, and the"
        " result the same",
    )
    second = next_rung(Kind.TRAIN, spec, {"micro_batch_size": 2}, 16 * GIB, {})
    assert second
    assert second.message.startswith("1 row is computed at once instead of 2, a batch in 5 parts")
    others = {"pro": 24 * GIB, "studio": 96 * GIB, "mini": 8 * GIB}
    third = next_rung(Kind.EXPORT, SPECS[Kind.EXPORT], {}, 16 * GIB, others)
    assert third
    assert third.message == (
        "it needs a worker with more than 16.0 GiB to give; studio has 96.0 GiB"
    )


def test_sizes_are_as_people_read_memory() -> None:
    assert [size(n) for n in (0, 300 << 20, 1 << 30, 24 << 30)] == [
        "0 MiB",
        "300 MiB",
        "1.0 GiB",
        "24.0 GiB",
    ]
