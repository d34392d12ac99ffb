"""Who leads and whether the door is open, on both databases."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Barrier, Thread

import pytest

from scheduler import leader
from scheduler.db import Database
from scheduler.models import Presence

START = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = timedelta(seconds=60)


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time

    def turn(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(database_url: str, clock: Clock) -> Iterator[Database]:
    database = Database(database_url, clock=clock)
    yield database
    database.close()


def _beat(database: Database, holder: str = "a") -> None:
    with database.transaction() as session:
        leader.beat(session, leader.WEB, holder)


def _open(database: Database, clock: Clock) -> bool:
    with database.transaction() as session:
        return leader.door_open(session, clock(), GRACE)


def test_a_door_that_never_was_is_open(timed: Database, clock: Clock) -> None:
    assert _open(timed, clock)


def test_a_door_opens_one_grace_after_it_came_back(timed: Database, clock: Clock) -> None:
    for _ in range(6):
        _beat(timed)
        assert not _open(timed, clock)
        clock.turn(10)
    _beat(timed)
    assert _open(timed, clock)
    clock.turn(leader.DOOR + 1)
    assert not _open(timed, clock), "its web process is gone"
    _beat(timed, "b")
    assert not _open(timed, clock), "it is back, and workers have not had the time to report"


def test_one_of_two_web_processes_keeps_the_door_open(timed: Database, clock: Clock) -> None:
    for n in range(10):
        _beat(timed, "a" if n < 5 else "b")
        clock.turn(10)
    assert _open(timed, clock)


def test_a_clock_that_was_set_back_shuts_no_door_for_ever(timed: Database, clock: Clock) -> None:
    _beat(timed)
    clock.turn(-86_400)
    for _ in range(7):
        _beat(timed)
        clock.turn(10)
    assert _open(timed, clock)


def test_beats_of_two_at_once_leave_one_row(timed: Database) -> None:
    barrier = Barrier(2)

    def beat(holder: str) -> None:
        barrier.wait(60)
        _beat(timed, holder)

    threads = [Thread(target=beat, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with timed.reading() as session:
        assert session.query(Presence).count() == 1
