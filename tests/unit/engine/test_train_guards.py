"""When a run has its best weights, when it goes on in vain, and when it has run away."""

import math
import random

import mlx.core as mx
import pytest

from espalier.errors import InvalidInput
from espalier.specs import TrainSpec, parse
from worker.engine.train.best import Best
from worker.engine.train.guards import PATIENCE, Course, are_finite


def validated(losses: list[float], patience: int | None, min_delta: float = 0.0) -> Best:
    """Validate every ten steps until told to stop."""
    best = Best()
    for number, loss in enumerate(losses):
        best.take(10 * number, loss, patience, min_delta)
        if best.stopped:
            break
    return best


def test_the_lowest_loss_is_the_best_and_the_start_is_none() -> None:
    best = validated([1.0, 3.0, 2.0, 2.0, 2.5], None)
    assert (best.step, best.loss, best.start, best.stopped) == (20, 2.0, 1.0, False)


@pytest.mark.parametrize(
    ("losses", "min_delta", "stopped_at_waiting", "best"),
    [
        ([9, 3, 2, 2.1, 2.2, 1.0], 0.0, 2, (20, 2.0)),
        ([9, 3, 2.5, 2.0, 1.5, 1.0], 0.0, None, (50, 1.0)),
        # Each step down is below the delta, and together they are not.
        ([9, 3, 2.95, 2.85, 2.8, 2.7], 0.1, None, (50, 2.7)),
        ([9, 3, 2.95, 2.94, 2.0], 0.1, 2, (30, 2.94)),
    ],
)
def test_patience_counts_validations_without_improvement(
    losses: list[float], min_delta: float, stopped_at_waiting: int | None, best: tuple[int, float]
) -> None:
    found = validated(losses, 2, min_delta)
    assert (found.step, found.loss) == best
    assert found.stopped == (stopped_at_waiting is not None)
    if stopped_at_waiting:
        assert found.waited == stopped_at_waiting


def diverged_at(losses: list[float], limit: float = 3.0) -> int | None:
    course = Course()
    for step, loss in enumerate(losses, 1):
        if course.take(loss, limit):
            return step
    return None


def test_a_loss_that_has_run_away_is_found_after_the_patience() -> None:
    falling = [2.5 - 0.01 * i for i in range(150)]
    at = diverged_at(falling + [9.0] * 200)
    assert at is not None
    assert 150 + PATIENCE < at < 150 + 2 * PATIENCE
    assert diverged_at(falling + [9.0] * 200, limit=0.0) is None


def test_no_sane_run_is_stopped() -> None:
    rng = random.Random(4)
    noisy = [2.0 + rng.gauss(0, 1.5) for _ in range(3000)]
    memorised = [2.5 * 0.98**i for i in range(300)] + [2.4] * 300
    spike = [1.0] * 100 + [30.0] * 10 + [1.0] * 200
    warming = [11.0] * 60 + [11.0 * 0.99**i for i in range(400)]
    for losses in (noisy, memorised, spike, warming):
        assert diverged_at(losses) is None


def test_what_is_not_finite_is_found_wherever_it_is() -> None:
    sound = {"a": mx.ones((3,)), "b": [mx.zeros((2,)), mx.array([1, 2])]}
    assert are_finite(sound, None)
    assert are_finite({"large": mx.full((100,), 60_000, mx.float16)}), "though its sum is not"
    for value in (math.nan, math.inf):
        assert not are_finite(sound, {"c": mx.array([1.0, value])})


def test_keys_that_contradict_each_other_are_refused() -> None:
    names = {"model": "team/m", "data": "team/d"}
    with pytest.raises(InvalidInput, match="val_batches 0 turns them off"):
        parse(TrainSpec, names | {"early_stopping_patience": 3, "val_batches": 0})
    assert parse(TrainSpec, names).keep == "best"
    assert parse(TrainSpec, names | {"order": "mlx-lm"}).keep == "last"
    assert parse(TrainSpec, names | {"order": "mlx-lm", "keep": "best"}).keep == "best"
