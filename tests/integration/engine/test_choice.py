"""Which variant is recommended, under which limits."""

import math

from worker.engine.measure import Measured
from worker.engine.proofs import Comparison
from worker.engine.quantize.choice import COLUMNS, Limits, Trial, Variant, choose, table

NONE = Limits(None, None)


def trial(name: str, size: int, loss: float) -> Trial:
    return Trial(name, 4.5, size, Measured(loss, 1000), 100.0, 50.0, 2 * size)


def variant(name: str, size: int, increase: float, kl: float, failures: str = "") -> Variant:
    """A variant of a model of perplexity e."""
    found = Comparison(10 * kl, kl, Measured(1.0, 1000), Measured(1 + math.log1p(increase), 1000))
    return Variant(trial(name, size, found.candidate.loss), found, failures)


EIGHT = variant("q8", 8_000_000_000, 0.001, 0.0004)
SIX = variant("q6", 6_000_000_000, 0.008, 0.004)
FOUR = variant("q4", 4_000_000_000, 0.06, 0.05)
ALL = (EIGHT, SIX, FOUR)


def test_without_limits_the_smallest_that_hardly_differs() -> None:
    choice = choose(ALL, NONE)
    assert choice.variant is SIX
    assert "q6 is recommended: the smallest whose perplexity rises by at most 2%" in choice.sentence
    assert "6 GB, 4.50 bits a weight, perplexity +0.80%, mean KL 0.004" in choice.sentence


def test_a_perplexity_that_fell_by_chance_does_not_count_alone() -> None:
    lucky = variant("q3", 3_000_000_000, -0.02, 0.07)
    assert choose((*ALL, lucky), NONE).variant is SIX


def test_where_all_differ_the_closest() -> None:
    choice = choose((FOUR, variant("q3", 3, 0.4, 0.3)), NONE)
    assert choice.variant is FOUR
    assert "the closest to the original; all differ" in choice.sentence


def test_within_a_perplexity_the_smallest() -> None:
    assert choose(ALL, Limits(None, 0.1)).variant is FOUR


def test_within_a_size_the_closest() -> None:
    failed = variant("q8", 8_000_000_000, 0.001, 0.0004, "size_bytes is 8e+09, the limit 7e+09")
    choice = choose((failed, SIX, FOUR), Limits(7_000_000_000, None))
    assert choice.variant is SIX
    assert "the closest to the original within 7 GB" in choice.sentence


def test_what_fails_is_never_recommended_and_the_nearest_is_named() -> None:
    small = variant("q2", 2_000_000_000, 3.0, 1.2, "perplexity_increase is 3, the limit 0.02")
    large = variant("q4", 4_200_000_000, 0.015, 0.01, "size_bytes is 4.2e+09, the limit 4e+09")
    choice = choose((small, large), Limits(4_000_000_000, 0.02))
    assert choice.variant is None
    assert "None of 2 variants holds its limits; q4 comes nearest" in choice.sentence
    assert "size_bytes is 4.2e+09" in choice.sentence


def test_nan_is_never_the_nearest() -> None:
    broken = variant("broken", 1, math.nan, math.nan, "perplexity_increase is nan, the limit 1")
    far = variant("far", 9, 9.0, 9.0, "perplexity_increase is 9, the limit 1")
    assert "far comes nearest" in choose((broken, far), Limits(None, 1.0)).sentence


def test_the_table_has_the_original_first_and_one_mark() -> None:
    rows = table(trial("original", 16, 1.0), ALL, SIX)
    told = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    assert [row["variant"] for row in told] == ["original", "q8", "q6", "q4"]
    assert [row["recommended"] for row in told] == [False, False, True, False]
    assert told[0]["perplexity_increase"] is None
    assert told[3]["mean_kl"] == 0.05
