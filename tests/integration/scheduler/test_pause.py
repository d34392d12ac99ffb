"""Pause and resume: a flag, a checkpoint, a free slot, and nothing counted for it."""

import pytest

from espalier.errors import Conflict, LeaseLost
from espalier.states import AttemptState, JobState, Reason
from scheduler.models import Event, Job
from tests.integration.scheduler.stack import Stack


def _events(stack: Stack, job_id: str) -> list[str]:
    with stack.database.reading() as session:
        events = session.query(Event).filter_by(job_id=job_id).order_by(Event.id)
        return [event.type for event in events]


def test_a_running_job_is_paused_and_goes_on(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    stack.pause(job_id)
    assert stack.tick() == [ticket], "its worker is rung for"
    assert stack.tick() == [], "once"
    (order,) = stack.report(ticket).orders
    assert (order.order, order.attempt_id) == ("pause", ticket.attempt_id)
    assert stack.finish(ticket, "cancelled", reason=Reason.PAUSED).job_state == JobState.QUEUED
    (attempt,) = stack.job(job_id).attempts
    assert (attempt.state, attempt.reason) == (AttemptState.CANCELLED, Reason.PAUSED)
    assert stack.tick() == [], "its slot is free, and it stays paused"
    stack.resume(job_id)
    assert stack.finish(stack.claimed()).job_state == JobState.SUCCEEDED
    job = stack.job(job_id)
    assert (job.charged, job.lost, job.pause_requested_at) == (0, 0, None)
    assert _events(stack, job_id) == [
        "submitted",
        "placed",
        "claimed",
        "pause_requested",
        "paused",
        "resumed",
        "placed",
        "claimed",
        "succeeded",
    ]


def test_a_paused_job_lets_others_by_and_keeps_its_place(stack: Stack) -> None:
    stack.worker()
    paused, other, last = stack.submit(), stack.submit(), stack.submit()
    stack.pause(paused)
    ticket = stack.claimed()
    assert stack.job(other).state == JobState.RUNNING
    stack.resume(paused)
    stack.finish(ticket)
    stack.claimed()
    assert stack.job(paused).state == JobState.RUNNING
    assert stack.job(last).state == JobState.QUEUED


def test_a_placed_attempt_is_withdrawn(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    (ticket,) = stack.tick()
    stack.pause(job_id)
    with pytest.raises(LeaseLost):
        stack.claim(ticket)
    assert stack.tick() == []
    stack.resume(job_id)
    (again,) = stack.tick()
    assert again.attempt_id != ticket.attempt_id


def test_a_waiting_job_is_paused_and_still_becomes_queued(stack: Stack) -> None:
    stack.worker()
    first = stack.submit()
    spec = {"kind": "eval", "model": "team/base", "adapter": f"job:{first}"}
    second = stack.submit({**spec, "data": "team/wikisql"})
    stack.pause(second)
    assert stack.job(second).state == JobState.WAITING
    stack.finish(stack.claimed())
    assert stack.job(second).state == JobState.QUEUED
    assert stack.tick() == []
    stack.resume(second)
    assert len(stack.tick()) == 1


def test_resumed_before_its_worker_heard_it_is_as_if_never_paused(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    stack.pause(job_id)
    stack.resume(job_id)
    assert stack.report(ticket).orders == ()
    assert stack.finish(ticket).job_state == JobState.SUCCEEDED


def test_resumed_while_its_worker_stops_it_is_queued_at_once(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    stack.pause(job_id)
    stack.resume(job_id)
    stack.finish(ticket, "cancelled", reason=Reason.PAUSED)
    assert stack.job(job_id).attempts[0].reason == Reason.WORKER_STOPPED
    assert len(stack.tick()) == 1


def test_a_paused_job_whose_child_dies_instead_stays_paused(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    stack.pause(job_id)
    assert stack.fail(ticket, Reason.KILLED).job_state == JobState.QUEUED
    assert stack.tick() == []
    stack.resume(job_id)
    assert len(stack.tick()) == 1


def test_a_paused_job_whose_worker_is_lost_stays_paused(stack: Stack) -> None:
    stack.worker("a")
    job_id = stack.submit()
    stack.claimed()
    stack.pause(job_id)
    stack.worker("b")
    stack.let_pass(1000)
    stack.without_grace()
    assert stack.tick() == []
    assert stack.job(job_id).state == JobState.QUEUED


def test_cancel_wins_over_pause(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    stack.pause(job_id)
    stack.cancel(job_id)
    assert [o.order for o in stack.report(ticket).orders] == ["cancel"]
    assert stack.finish(ticket, "cancelled").job_state == JobState.CANCELLED
    assert stack.job(job_id).attempts[0].reason == Reason.CANCELLED
    with pytest.raises(Conflict, match="ended as cancelled"):
        stack.resume(job_id)
    stack.retry(job_id)
    assert len(stack.tick()) == 1, "a retry is not paused"


def test_what_cannot_be_paused_or_resumed_says_so(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    with pytest.raises(Conflict, match=f"{job_id} is queued and not paused"):
        stack.resume(job_id)
    stack.pause(job_id)
    stack.pause(job_id)
    assert _events(stack, job_id).count("pause_requested") == 1
    stack.resume(job_id)
    stack.claimed()
    stack.cancel(job_id)
    with pytest.raises(Conflict, match="is being cancelled"):
        stack.pause(job_id)


def test_a_long_head_of_paused_and_too_big_jobs_starves_nobody(stack: Stack) -> None:
    stack.worker()
    for _ in range(3):
        stack.pause(stack.submit())
    for _ in range(3):
        big = stack.submit()
        with stack.database.transaction() as session:
            row = session.get_one(Job, big)
            row.min_memory_bytes, row.rungs = 1 << 50, [{"rung": "min_memory_bytes"}]
    last = stack.submit()
    stack.claimed()
    assert stack.job(last).state == JobState.RUNNING
