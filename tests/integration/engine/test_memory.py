"""The predictor against MLX's own count of real runs; ``benchmarks/memory.py`` has many more."""

import pytest

from benchmarks.memory import WORST, measure, predict
from benchmarks.memory_cases import held_out


@pytest.mark.parametrize("number", [0, 9])
def test_a_prediction_is_near_the_peak_that_mlx_counts(number: int) -> None:
    case = held_out()[number]
    found = measure(case)
    assert predict(case, found).engine == pytest.approx(found["peak"], rel=WORST)
