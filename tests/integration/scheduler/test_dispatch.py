"""The tick: two schedulers at once, a door that is shut, clocks that jump, brokers that freeze."""

from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread

import pytest

from espalier.errors import Unavailable
from espalier.states import AttemptState, JobState, Reason
from scheduler import leader
from scheduler.db import Database
from scheduler.models import Attempt, Job, Worker
from scheduler.placing.dispatch import FOLLOW_SECONDS, Dispatcher, Ticket
from tests.integration.scheduler.stack import Stack
from tests.integration.scheduler.test_leader import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(database_url: str, clock: Clock, tmp_path: Path) -> Iterator[Stack]:
    """A stack whose clock the test turns."""
    database = Database(database_url, clock=clock)
    yield Stack.make(database, tmp_path)
    database.close()


def _beat(stack: Stack) -> None:
    with stack.database.transaction() as session:
        leader.beat(session, leader.WEB, "web")


def _pass(stack: Stack, clock: Clock, seconds: float, *, door: bool = True) -> list[Ticket]:
    """Let time go by as it does: ticks and, with ``door``, beats every few seconds."""
    sent = []
    for _ in range(int(seconds / 5)):
        clock.turn(5)
        if door:
            _beat(stack)
        sent += stack.tick()
    return sent


# --- Two schedulers -----------------------------------------------------------------------


def test_two_schedulers_place_every_job_once(stack: Stack) -> None:
    stack.worker(slots=12)
    for _ in range(12):
        stack.submit()
    sent: list[Ticket] = []
    barrier = Barrier(2)

    def run(dispatcher: Dispatcher) -> None:
        for _ in range(4):
            barrier.wait(120)
            dispatcher.tick()

    others = [Dispatcher(stack.database, sent.append, stack.config) for _ in range(2)]
    threads = [Thread(target=run, args=(d,)) for d in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(sent) == 12
    with stack.database.reading() as session:
        assert session.query(Attempt).filter_by(state=AttemptState.PLACED).count() == 12


def test_another_scheduler_leads_when_the_first_is_gone(timed: Stack, clock: Clock) -> None:
    timed.worker()
    second = Dispatcher(timed.database, timed.sent.append, timed.config)
    timed.tick()
    sqlite = timed.database.engine.dialect.name == "sqlite"
    if sqlite:
        assert second.tick() == FOLLOW_SECONDS
    clock.turn(leader.LEASE + 1)
    timed.hear()
    timed.submit()
    second.tick()
    assert len(timed.sent) == 1
    if sqlite:
        timed.submit()
        assert timed.dispatcher.tick() == FOLLOW_SECONDS, "it may come back, and only follows"
        second.resign()
        assert timed.dispatcher.tick() != FOLLOW_SECONDS


def test_many_jobs_are_placed_in_several_ticks_that_follow_at_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.placing.dispatch.BATCH", 3)
    stack.worker(slots=7)
    submitted = [stack.submit() for _ in range(8)]
    assert [stack.dispatcher.tick() for _ in range(2)] == [0.0, 0.0]
    assert stack.dispatcher.tick() > 0
    assert len(stack.sent) == 7
    assert stack.job(submitted[-1]).attempts == []


# --- Silence that proves nothing ----------------------------------------------------------


def test_while_the_door_is_shut_nobody_is_given_up(timed: Stack, clock: Clock) -> None:
    timed.worker(slots=2)
    _pass(timed, clock, 200)
    running, placed = timed.submit(), timed.submit()
    timed.hear()
    first, _ = timed.tick()
    timed.claim(first)
    _pass(timed, clock, 1000, door=False)
    assert timed.job(running).state == JobState.RUNNING
    assert [a.state for a in timed.job(placed).attempts] == [AttemptState.PLACED]
    _pass(timed, clock, timed.config.lease_seconds - 10)
    assert timed.job(running).state == JobState.RUNNING, "one lease to be heard in"
    _pass(timed, clock, 30)
    assert timed.job(running).attempts[0].reason == Reason.LEASE_LOST
    assert timed.job(placed).attempts[0].reason == Reason.UNCLAIMED


def test_a_machine_that_slept_gives_up_nobody_at_once(timed: Stack, clock: Clock) -> None:
    timed.worker()
    job_id = timed.submit()
    ticket = timed.claimed()
    timed.without_grace()
    clock.turn(36_000)
    timed.tick()
    assert timed.job(job_id).state == JobState.RUNNING
    timed.report(ticket)
    _pass(timed, clock, 170)
    assert timed.job(job_id).state == JobState.RUNNING


def test_a_lease_of_a_clock_that_was_set_back_ends(timed: Stack, clock: Clock) -> None:
    timed.worker()
    job_id = timed.submit()
    timed.claimed()
    _pass(timed, clock, 5)
    clock.turn(-86_400)
    _pass(timed, clock, 2 * timed.config.lease_seconds + 10)
    job = timed.job(job_id)
    assert job.attempts[0].reason == Reason.LEASE_LOST
    timed.hear()
    timed.claimed()


def test_a_backoff_of_a_clock_that_was_set_back_ends(timed: Stack, clock: Clock) -> None:
    timed.worker()
    timed.submit()
    timed.fail(timed.claimed(), Reason.CODE_ERROR)
    clock.turn(1)
    timed.hear()
    assert timed.tick() == []
    clock.turn(-86_400)
    timed.hear()
    assert len(timed.tick()) == 1


def test_three_tickets_unclaimed_make_a_worker_suspect_for_a_while(
    timed: Stack, clock: Clock
) -> None:
    worker_id = timed.worker("deaf")
    job_id = timed.submit()
    for _ in range(4):
        timed.hear()
        timed.tick()
        clock.turn(31)
    assert [a.reason for a in timed.job(job_id).attempts] == [Reason.UNCLAIMED]
    timed.hear()
    assert timed.tick() == [], "it is suspect"
    clock.turn(300)
    timed.hear()
    (again,) = timed.tick()
    timed.claim(again)
    with timed.at_work(worker_id) as (_, worker):
        assert worker.unclaimed == 0


# --- The broker ---------------------------------------------------------------------------


def test_a_frozen_broker_is_asked_once_a_tick(stack: Stack) -> None:
    stack.worker(slots=3)
    for _ in range(3):
        stack.submit()
    asked: list[Ticket] = []

    def frozen(ticket: Ticket) -> None:
        asked.append(ticket)
        raise Unavailable("The broker did not answer.")

    away = Dispatcher(stack.database, frozen, stack.config)
    assert away.tick() <= 1.0
    away.tick()
    assert len(asked) == 2
    away.resign()
    assert len(stack.tick()) == 3, "none of them counted as sent"
    with stack.database.reading() as session:
        assert [a.published for a in session.query(Attempt)] == [1, 1, 1]


# --- One job against the others -----------------------------------------------------------


def test_a_job_that_cannot_be_changed_keeps_no_other_from_it(stack: Stack) -> None:
    """As a row that a bug or a hand in the database left in a state there is no way out of."""
    stack.worker(slots=2)
    broken, other = stack.submit(), stack.submit()
    for ticket in stack.tick():
        stack.claim(ticket)
    with stack.database.transaction() as session:
        session.get_one(Job, broken).state = JobState.SUCCEEDED
        session.get_one(Job, broken).lost = stack.config.lost_limit
    stack.let_pass(1000)
    stack.without_grace()
    assert stack.dispatcher.tick() >= 1.0, "it is not tried again without a pause"
    assert stack.job(other).attempts[0].reason == Reason.LEASE_LOST
    assert stack.job(broken).attempts[0].state == AttemptState.RUNNING


def test_a_worker_with_enough_memory_is_chosen_and_waited_for(stack: Stack) -> None:
    small, big = stack.worker("small", slots=3), stack.worker("big")
    with stack.database.transaction() as session:
        for worker_id, memory in ((small, 8 << 30), (big, 64 << 30)):
            worker = session.get_one(Worker, worker_id)
            worker.machine = {**worker.machine, "memory_limit": memory}
    wide = [stack.submit() for _ in range(2)]
    with stack.database.transaction() as session:
        for job_id in wide:
            session.get_one(Job, job_id).min_memory_bytes = 16 << 30
    narrow = stack.submit()
    placed = {t.attempt_id: t.worker_id for t in stack.tick()}
    assert [placed[a.id] for a in stack.job(wide[0]).attempts] == [big]
    assert stack.job(wide[1]).attempts == []
    assert [placed[a.id] for a in stack.job(narrow).attempts] == [small]


def test_the_worker_at_fault_gets_the_job_last(stack: Stack) -> None:
    stack.worker("a")
    job_id = stack.submit()
    first = stack.claimed()
    stack.worker("b")
    stack.fail(first, Reason.DISK_FULL)
    (second,) = stack.tick()
    assert second.worker_id != first.worker_id
    assert stack.job(job_id).charged == 0
