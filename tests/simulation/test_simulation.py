"""The short form of ``python -m tests.simulation``: every promise, on a hundred nights."""

from collections import Counter

import pytest

from tests.simulation.databases import Bench
from tests.simulation.simulation import simulate


def _all_kept(bench: Bench, seeds: range) -> Counter[str]:
    faults: Counter[str] = Counter()
    for seed in seeds:
        outcome = simulate(seed, bench)
        assert outcome.violation is None, f"{outcome.trace}\n{outcome.violation}"
        faults += outcome.faults
    return faults


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_every_promise_is_kept_on_sqlite(sqlite_bench: Bench, first: int) -> None:
    assert _all_kept(sqlite_bench, range(first, first + 10)).total() > 100


@pytest.mark.parametrize("first", range(0, 15, 5))
def test_every_promise_is_kept_on_postgresql(postgres_bench: Bench, first: int) -> None:
    assert _all_kept(postgres_bench, range(first, first + 5)).total() > 50


def test_a_seed_is_one_world(sqlite_bench: Bench) -> None:
    first, second = (simulate(7, sqlite_bench, traced=True) for _ in range(2))
    assert first.trace == second.trace
    assert simulate(8, sqlite_bench, traced=True).trace != first.trace


def test_both_databases_see_the_same_night(sqlite_bench: Bench, postgres_bench: Bench) -> None:
    assert simulate(3, sqlite_bench).counts == simulate(3, postgres_bench).counts
