"""What people ask of jobs: cancel and retry, alone and in pipelines."""

import pytest

from espalier.errors import Conflict
from espalier.refs import JobRef
from espalier.states import JobState, Reason
from tests.integration.scheduler.stack import Stack


def test_cancel_before_it_runs(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    (ticket,) = stack.tick()
    stack.cancel(job_id)
    assert stack.job(job_id).state == JobState.CANCELLED
    with pytest.raises(Conflict):
        stack.claim(ticket)


def test_cancel_while_it_runs_goes_by_the_next_report(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    stack.cancel(job_id)
    assert stack.job(job_id).state == JobState.RUNNING
    (order,) = stack.report(ticket).orders
    assert (order.order, order.attempt_id) == ("cancel", ticket.attempt_id)
    assert stack.finish(ticket, "cancelled").job_state == JobState.CANCELLED


def test_cancel_rings_the_worker_once(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    stack.cancel(job_id)
    assert stack.tick() == [ticket]
    assert stack.tick() == []


def test_cancel_of_a_job_whose_worker_is_gone(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    stack.claimed()
    stack.cancel(job_id)
    stack.let_pass(1000)
    stack.without_grace()
    stack.tick()
    assert stack.job(job_id).state == JobState.CANCELLED


def test_an_ended_job_cannot_be_cancelled_or_a_good_one_retried(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    stack.finish(stack.claimed())
    with pytest.raises(Conflict, match="already succeeded"):
        stack.cancel(job_id)
    with pytest.raises(Conflict, match="only failed and cancelled"):
        stack.retry(job_id)


# --- Pipelines ----------------------------------------------------------------------------


def _chain(stack: Stack) -> tuple[str, str, str]:
    """Train, eval of what it made, and a fuse of it; the first one runs."""
    train = stack.submit()
    spec = {"model": "team/base", "adapter": f"job:{train}"}
    second = stack.submit({"kind": "eval", **spec, "data": "team/wikisql"})
    third = stack.submit({"kind": "fuse", **spec})
    return train, second, third


def test_retry_runs_again_what_failed_and_what_hung_on_it(stack: Stack) -> None:
    stack.worker(slots=2)
    train, second, third = _chain(stack)
    stack.finish(stack.claimed())
    for ticket in stack.tick():
        stack.claim(ticket)
        if ticket.kind == "eval":
            stack.fail(ticket, Reason.BAD_INPUT)
        else:
            stack.finish(ticket)
    assert [stack.job(j).state for j in (second, third)] == [JobState.FAILED, JobState.SUCCEEDED]
    stack.retry(second)
    stack.finish(stack.claimed())
    assert stack.job(second).state == JobState.SUCCEEDED
    assert [len(stack.job(j).attempts) for j in (train, second, third)] == [1, 2, 1]


def test_what_was_not_run_comes_back_with_what_it_needs(stack: Stack) -> None:
    stack.worker()
    train, second, third = _chain(stack)
    stack.fail(stack.claimed(), Reason.BAD_INPUT)
    assert {stack.job(j).reason for j in (second, third)} == {Reason.UPSTREAM}
    with pytest.raises(Conflict, match=f"{second} needs job {train}, which did not succeed"):
        stack.retry(second)
    stack.retry(train)
    assert {stack.job(j).state for j in (second, third)} == {JobState.WAITING}
    stack.finish(stack.claimed())
    assert {stack.job(j).state for j in (second, third)} == {JobState.QUEUED}


def test_an_output_that_was_not_made_fails_nobody_but_who_asked_for_it(stack: Stack) -> None:
    stack.worker()
    train = stack.submit()
    spec = {"kind": "eval", "model": "team/base", "adapter": str(JobRef(train, "nonsense"))}
    second = stack.submit({**spec, "data": "team/wikisql"})
    assert stack.finish(stack.claimed()).job_state == JobState.SUCCEEDED
    job = stack.job(second)
    assert (job.state, job.reason) == (JobState.CANCELLED, Reason.UPSTREAM)
