"""Intervals: what they cover, that they repeat, and that pairs are compared as pairs."""

import math

import numpy as np
import pytest

from worker.engine.eval.bootstrap import Bootstrap, Interval


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, 4000)
    found = Bootstrap(4000, 2000, 1).interval(values)
    half = 1.96 * values.std() / math.sqrt(4000)
    assert found.low == pytest.approx(values.mean() - half, abs=0.005)
    assert found.high == pytest.approx(values.mean() + half, abs=0.005)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(7)
    counts = rng.integers(5, 60, (300, 80))
    sums = counts * rng.gamma(2.0, 1.0, (300, 80))  # mean 2 nats a token, rows of any length
    held = 0
    for index in range(300):
        found = Bootstrap(80, 400, index).interval(sums[index], counts[index])
        held += found.low <= 2.0 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_the_same_seed_draws_the_same() -> None:
    sums, counts = np.arange(50.0), np.arange(1, 51)
    whole = Bootstrap(50, 300, 5).means(sums, counts)
    assert np.array_equal(whole, Bootstrap(50, 300, 5).means(sums, counts))
    assert not np.array_equal(whole, Bootstrap(50, 300, 6).means(sums, counts))
    many = Bootstrap(30_000, 100, 0).means(np.ones(30_000))  # in pieces
    assert many.tolist() == [1.0] * 100


def test_a_difference_of_pairs_is_known_better_than_either() -> None:
    rng = np.random.default_rng(3)
    hard = rng.gamma(2.0, 20.0, 200)
    counts = np.full(200, 20)
    draws = Bootstrap(200, 1000, 0)
    apart = draws.difference(hard * 0.9, hard, counts)
    alone = draws.interval(hard, counts)
    assert apart.high < 0
    assert apart.high - apart.low < 0.2 * (alone.high - alone.low)
    assert draws.difference(hard, hard, counts) == Interval(0.0, 0.0)
