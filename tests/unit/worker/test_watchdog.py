"""Hangs and holds by the hour, in no time: what passes is told, not waited for."""

import random
from collections.abc import Callable

import pytest

from worker.watchdog import (
    FAR_OVER,
    TIMES_BUSY,
    TIMES_LONGEST,
    Hang,
    MemoryGuard,
    Usage,
    Watchdog,
)

FIRST, FLOOR = 1800.0, 120.0


class Child:
    """A simulated child: seconds pass for it, and it works in them or does not."""

    def __init__(self, first: float = FIRST, floor: float = FLOOR) -> None:
        self.watchdog = Watchdog(first, floor)
        self.cpu = 0.0
        self.moved = 0

    def passes(
        self, seconds: int, *, cpu: float = 0.0, moved: int = 0, tick: float = 1.0
    ) -> Hang | None:
        """Let time pass with ``cpu`` seconds and ``moved`` bytes per second; stop at a hang."""
        for _ in range(int(seconds / tick)):
            self.cpu += cpu * tick
            self.moved += int(moved * tick)
            if hang := self.watchdog.tick(tick, Usage(1, self.cpu, self.moved)):
                return hang
        return None

    def steps(self, count: int, seconds: int, cpu: float = 1.0) -> None:
        for _ in range(count):
            assert self.passes(seconds, cpu=cpu) is None
            self.watchdog.heard()


@pytest.fixture
def training() -> Child:
    """A child that has begun to train: steps of 3 s."""
    child = Child()
    child.watchdog.heard("loading")
    child.watchdog.heard("training")
    child.steps(20, 3)
    return child


def test_a_stopped_child_is_found_after_the_floor(training: Child) -> None:
    assert training.passes(119) is None
    hang = training.passes(1)
    assert hang == Hang("training", 120.0, 3.0, busy=False)
    assert "no progress for 120 s in its phase training" in str(hang)
    assert "3.0 s" in str(hang)


def test_a_childs_own_longest_wait_is_what_it_is_measured_by(training: Child) -> None:
    training.steps(1, 60)
    training.steps(50, 3)
    assert training.passes(TIMES_LONGEST * 60 - 1) is None
    hang = training.passes(1)
    assert hang
    assert (hang.waited, hang.longest) == (TIMES_LONGEST * 60, 60.0)


def test_a_wait_that_ends_in_time_is_learned_also_without_any_work() -> None:
    """On Metal the CPU rests while the GPU computes."""
    child = Child()
    child.watchdog.heard("training")
    child.steps(1, 900, cpu=0.0)
    child.steps(30, 800, cpu=0.0)


def test_the_first_step_gets_long() -> None:
    child = Child()
    child.watchdog.heard("training")
    assert child.passes(int(FIRST) - 1) is None
    hang = child.passes(1)
    assert hang
    assert hang.longest is None
    assert "none there yet" in str(hang)


def test_a_child_that_never_starts_is_found() -> None:
    hang = Child().passes(int(FIRST))
    assert hang
    assert hang.phase == "starting"


@pytest.mark.parametrize(("cpu", "moved"), [(1.0, 0), (0.01, 0), (0.0, 100_000)])
def test_a_slow_step_on_a_slow_machine_is_left_alone(
    training: Child, cpu: float, moved: int
) -> None:
    """200 times as long as any before: by computing, by a share of a busy CPU, from the disk."""
    assert training.passes(600, cpu=cpu, moved=moved) is None
    training.watchdog.heard()


def test_work_before_it_was_stopped_does_not_protect_it(training: Child) -> None:
    assert training.passes(600, cpu=2.0) is None
    hang = training.passes(121)
    assert hang
    assert not hang.busy


def test_a_thread_that_looks_at_something_now_and_then_is_no_work(training: Child) -> None:
    for _ in range(10):
        found = training.passes(14) or training.passes(1, cpu=0.001, moved=200)
        if found:
            break
    assert found
    assert found.waited < 150


def test_a_deadlock_that_spins_ends_too(training: Child) -> None:
    hang = training.passes(100_000, cpu=4.0)
    assert hang
    assert hang.busy
    assert hang.waited == TIMES_BUSY * FLOOR
    assert "busy" in str(hang)


def test_each_phase_learns_for_itself(training: Child) -> None:
    training.watchdog.heard("validating")
    assert training.passes(1000) is None, "a first validation, without a word, on a GPU"
    training.watchdog.heard()
    training.watchdog.heard("training")
    hang = training.passes(10_000)
    assert hang
    assert hang.waited == FLOOR, "training has learned nothing from validating"
    training.watchdog.heard("validating")
    assert training.passes(TIMES_LONGEST * 1000 - 1) is None
    assert training.passes(1)


def test_a_helpers_end_takes_its_figures_away(training: Child) -> None:
    training.cpu = 500.0
    training.passes(1)
    training.cpu = 1.0
    training.moved = 0
    assert training.passes(118) is None
    assert training.passes(2), "a smaller sum is no work"


def test_looking_more_often_changes_nothing(training: Child) -> None:
    assert training.passes(119, tick=0.25) is None
    hang = training.passes(2, tick=0.25)
    assert hang
    assert hang.waited == FLOOR


@pytest.mark.parametrize("seed", range(20))
def test_no_honest_child_is_ended(seed: int) -> None:
    """Steps that vary, pauses of the disk, a machine that slows down: none is a hang."""
    chance = random.Random(seed)
    child = Child()
    for phase in ("loading", "training", "validating", "training", "saving"):
        child.watchdog.heard(phase)
        usual = chance.uniform(0.3, 40)
        for _ in range(chance.randrange(1, 60)):
            seconds = int(usual * chance.choice((1, 1, 1, 2, 5)) * chance.uniform(0.5, 1.5)) + 1
            assert child.passes(seconds, cpu=chance.choice((0.0, 0.5, 8.0))) is None
            child.watchdog.heard()


@pytest.mark.parametrize(
    ("samples", "ended_at"),
    [
        ([90, 95, 99], None),
        ([101, 90, 101, 90], None),
        ([90, 101, 102], 2),
        ([90, 101, 90, 101, 101], 4),
        ([90, int(FAR_OVER * 100) + 1], 1),
        ([100, 100, 100], None),
    ],
)
def test_memory_above_the_limit(samples: list[int], ended_at: int | None) -> None:
    guard = MemoryGuard(100)
    verdict: Callable[[int], bool] = guard.too_much
    found = next((i for i, memory in enumerate(samples) if verdict(memory)), None)
    assert found == ended_at


def test_memory_is_looked_at_closely_near_the_limit() -> None:
    guard = MemoryGuard(1000)
    assert not guard.near(800)
    assert guard.near(801)
