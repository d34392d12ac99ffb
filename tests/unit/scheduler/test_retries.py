"""How long a job waits after a fault."""

import pytest

from scheduler.lifecycle.retries import CHARGED_LIMIT, FAULT_LIMIT, JITTER, delay


@pytest.mark.parametrize(
    ("count", "seconds"), [(1, 2), (2, 4), (3, 8), (8, 256), (9, CHARGED_LIMIT), (10**6, 300)]
)
def test_charged_failures_wait_longer_and_longer(count: int, seconds: float) -> None:
    assert delay("job", count, of_machine=False) == pytest.approx(seconds, rel=JITTER)


@pytest.mark.parametrize(
    ("count", "seconds"), [(1, 0), (2, 1), (3, 2), (4, 4), (8, FAULT_LIMIT), (10**6, 60)]
)
def test_the_first_fault_of_a_machine_costs_nothing(count: int, seconds: float) -> None:
    assert delay("job", count, of_machine=True) == pytest.approx(seconds, rel=JITTER)


def test_jobs_that_failed_together_come_back_apart_and_the_same_way_again() -> None:
    delays = [delay(f"job-{n}", 9, of_machine=False) for n in range(200)]
    assert delays == [delay(f"job-{n}", 9, of_machine=False) for n in range(200)]
    assert len(set(delays)) > 190
    low, high = CHARGED_LIMIT * (1 - JITTER), CHARGED_LIMIT * (1 + JITTER)
    assert low <= min(delays) < low + 15
    assert high - 15 < max(delays) <= high
