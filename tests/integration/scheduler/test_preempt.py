"""A job of higher priority takes the slot of one that its project lets go."""

import pytest

from espalier.states import AttemptState, JobState, Reason
from scheduler.models import Event, Job, Project
from tests.integration.scheduler.stack import Stack


@pytest.fixture(autouse=True)
def _preemptible(stack: Stack) -> None:
    with stack.database.transaction() as session:
        session.query(Project).filter_by(name="team").one().preemptible = True


def test_a_running_job_makes_room_and_goes_on_afterwards(stack: Stack) -> None:
    stack.worker()
    low = stack.submit()
    behind = stack.submit()
    ticket = stack.claimed()
    high = stack.submit(priority=5)
    assert stack.tick() == [ticket], "its worker is rung for"
    assert stack.tick() == [], "once"
    (order,) = stack.report(ticket).orders
    assert order.order == "pause"
    assert stack.finish(ticket, "cancelled", reason=Reason.PAUSED).job_state == JobState.QUEUED
    (attempt,) = stack.job(low).attempts
    assert (attempt.state, attempt.reason) == (AttemptState.CANCELLED, Reason.PREEMPTED)
    urgent = stack.claimed()
    assert stack.job(high).state == JobState.RUNNING
    stack.finish(urgent)
    stack.claimed()
    assert stack.job(low).state == JobState.RUNNING, "it kept its place"
    assert stack.job(behind).state == JobState.QUEUED
    assert (stack.job(low).charged, stack.job(low).lost) == (0, 0)
    with stack.database.reading() as session:
        (event,) = session.query(Event).filter_by(job_id=low, type="preempting")
        assert event.data["urgent"] == high
        assert high in event.message


def test_one_slot_is_freed_for_one_job(stack: Stack) -> None:
    stack.worker(slots=3)
    for _ in range(3):
        stack.submit()
    for ticket in stack.tick():
        stack.claim(ticket)
    stack.submit(priority=5)
    assert len(stack.tick()) == 1
    assert stack.tick() == [], "a slot is on its way already"
    stack.submit(priority=5)
    assert len(stack.tick()) == 1


def test_the_youngest_of_the_lowest_priority_goes(stack: Stack) -> None:
    stack.worker(slots=3)
    started = []
    for priority in (0, -1, -1):
        stack.submit(priority=priority)
        started.append(stack.claimed())
    stack.submit(priority=5)
    assert stack.tick() == [started[2]]


def test_nobody_goes_for_an_equal_or_where_the_project_does_not_allow_it(stack: Stack) -> None:
    stack.worker()
    stack.submit(priority=5)
    stack.claimed()
    stack.submit(priority=5)
    assert stack.tick() == []
    with stack.database.transaction() as session:
        session.query(Project).one().preemptible = False
    stack.submit(priority=9)
    assert stack.tick() == []


def test_nobody_goes_for_a_job_that_would_not_fit(stack: Stack) -> None:
    stack.worker()
    stack.submit()
    stack.claimed()
    big = stack.submit(priority=5)
    with stack.database.transaction() as session:
        row = session.get_one(Job, big)
        row.min_memory_bytes, row.rungs = 1 << 50, [{"rung": "min_memory_bytes"}]
    assert stack.tick() == []


def test_nobody_goes_while_a_paused_job_leaves(stack: Stack) -> None:
    stack.worker(slots=2)
    first, second = stack.submit(), stack.submit()
    tickets = stack.tick()
    for ticket in tickets:
        stack.claim(ticket)
    stack.pause(first)
    assert len(stack.tick()) == 1
    stack.submit(priority=5)
    assert stack.tick() == []
    assert stack.job(second).attempts[0].preempt_requested_at is None


def test_a_victim_that_ends_by_itself_has_made_room_too(stack: Stack) -> None:
    stack.worker()
    low = stack.submit()
    ticket = stack.claimed()
    high = stack.submit(priority=5)
    stack.tick()
    assert stack.finish(ticket).job_state == JobState.SUCCEEDED
    assert stack.outputs(low)
    stack.claimed()
    assert stack.job(high).state == JobState.RUNNING
