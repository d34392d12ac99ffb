"""A signal ends the scheduler where it waits, and never in the middle of a query."""

import signal
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from scheduler.db import Database
from scheduler.ending import Ended, Ending


@pytest.fixture
def ending() -> Iterator[Ending]:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield Ending()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_while_it_waits_ends_it(ending: Ending) -> None:
    with pytest.raises(Ended), ending.waiting():
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_the_middle_of_a_transaction_is_obeyed_after_it(
    ending: Ending, database: Database
) -> None:
    with database.transaction() as session:
        signal.raise_signal(signal.SIGTERM)
        assert session.scalar(text("SELECT 1")) == 1
    with pytest.raises(Ended), ending.waiting():
        pytest.fail("it goes on although it was told to end")
