"""A limit is an average over all who share it."""

import threading

import pytest

from espalier.bandwidth import CHUNK, LEAST, Limit, Limits, parse_rate
from espalier.errors import InvalidInput


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.now += seconds


def test_bytes_take_their_time() -> None:
    clock = Clock()
    limit = Limit(1000, clock=clock, sleep=clock.sleep)
    for _ in range(100):
        limit.take(100)
    assert clock.now - 1000.0 == pytest.approx(10.0, abs=0.3)


def test_silence_is_not_saved_up() -> None:
    clock = Clock()
    limit = Limit(1000, clock=clock, sleep=clock.sleep)
    limit.take(1)
    clock.now = start = 5000.0
    for _ in range(100):
        limit.take(100)
    assert clock.now - start == pytest.approx(10.0, abs=0.3)


def test_nothing_is_waited_for_without_a_limit() -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError(seconds)

    limit = Limit(None, sleep=sleep)
    limit.take(1 << 40)
    assert limit.chunk == CHUNK


def test_a_slow_limit_moves_small_pieces() -> None:
    assert Limit(800_000).chunk == 100_000
    assert Limit(1).chunk == LEAST


def test_up_and_down_are_apart() -> None:
    limits = Limits.of(1000)
    assert limits.up is not limits.down
    assert limits.up.rate == limits.down.rate == 1000


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20MB", 20_000_000),
        ("1.5 MiB/s", 3 << 19),
        ("800k", 800_000),
        ("5000", 5000),
        ("1GiB", 1 << 30),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "0", "-5MB", "20XB", "0.1", "1e9", "nan", "9" * 40])
def test_no_rates(text: str) -> None:
    with pytest.raises(InvalidInput, match="no rate"):
        parse_rate(text)
