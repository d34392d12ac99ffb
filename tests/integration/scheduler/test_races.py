"""Two transactions at once, each asking for something that the other makes untrue.

The second begins while the first holds its locks, and has read what it decides on before. On
PostgreSQL it is seen to wait; on SQLite it waits for the write lock before it reads anything.
"""

import time
from collections.abc import Callable, Iterator
from threading import Thread

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from espalier.errors import Conflict, EspalierError, LeaseLost
from espalier.messages import Claim, Hello, Report
from espalier.settings import Settings
from espalier.specs import JobRequest, parse
from espalier.states import ATTEMPT_LIVE, AttemptState, JobState, Reason
from scheduler.db import now
from scheduler.lifecycle import assignments, ingest, jobs, requests, submit
from scheduler.models import Attempt, Event, Job, Worker
from scheduler.placing import fleet
from scheduler.placing.dispatch import Ticket
from scheduler.placing.placement import Placement
from tests.integration.scheduler.stack import MACHINE, Stack

Step = Callable[[Session], object]
_WAITING = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def _overlap(stack: Stack, first: Step, second: Step) -> Exception | None:
    """Run ``second`` in a transaction that overlaps with that of ``first``; return its refusal."""
    refused: list[Exception] = []

    def run_second() -> None:
        try:
            with stack.database.transaction() as session:
                for model in (Attempt, Job, Worker):  # what it will have read before it locks
                    session.scalars(select(model)).all()
                second(session)
        except EspalierError as error:
            refused.append(error)

    thread = Thread(target=run_second)
    with stack.database.transaction() as session:
        first(session)
        session.flush()
        thread.start()
        if session.get_bind().dialect.name == "postgresql":
            _until_it_waits(stack, thread)
    thread.join(120)
    assert not thread.is_alive()
    return refused[0] if refused else None


def _until_it_waits(stack: Stack, thread: Thread) -> None:
    deadline = time.monotonic() + 120
    while thread.is_alive():
        with stack.database.reading() as session:
            if session.scalar(_WAITING):
                return
        assert time.monotonic() < deadline
        thread.join(0.02)


def _request(stack: Stack, action: Callable[..., object], job_id: str) -> Step:
    return lambda session: action(session, stack.actor, session.get_one(Job, job_id))


def _finish(stack: Stack, ticket: Ticket) -> Step:
    def finish(session: Session) -> None:
        worker = session.get_one(Worker, ticket.worker_id)
        attempt = jobs.hold(session, worker, ticket.attempt_id, stack.boots[worker.id])
        jobs.succeed(session, attempt, {})

    return finish


def _fail(stack: Stack, ticket: Ticket, reason: Reason) -> Step:
    def fail(session: Session) -> None:
        worker = session.get_one(Worker, ticket.worker_id)
        attempt = jobs.hold(session, worker, ticket.attempt_id, stack.boots[worker.id])
        jobs.fail(session, attempt, reason, None)

    return fail


def _claim(stack: Stack, ticket: Ticket) -> Step:
    message = Claim(boot_id=stack.boots[ticket.worker_id])

    def claim(session: Session) -> None:
        worker = session.get_one(Worker, ticket.worker_id)
        assignments.claim(session, worker, ticket.attempt_id, message)

    return claim


def _report(stack: Stack, ticket: Ticket) -> Step:
    message = Report(boot_id=stack.boots[ticket.worker_id], seq=1)

    def report(session: Session) -> None:
        worker = session.get_one(Worker, ticket.worker_id)
        ingest.report(session, worker, ticket.attempt_id, message)

    return report


def _place(job_id: str, worker_id: str) -> Step:
    return lambda session: jobs.place(session, Placement(job_id, worker_id), now(session))


@pytest.fixture(autouse=True)
def _one_live_attempt_a_job(stack: Stack) -> Iterator[None]:
    """Whatever raced, no job has two live attempts, and one iff it runs or may be claimed."""
    yield
    with stack.database.reading() as session:
        for job in session.scalars(select(Job)):
            live = [a.state for a in job.attempts if a.state in ATTEMPT_LIVE]
            assert len(live) <= 1
            assert (job.state == JobState.RUNNING) == (live == [AttemptState.RUNNING])
            assert job.state == JobState.QUEUED or live != [AttemptState.PLACED]


# --- People against workers ---------------------------------------------------------------


def test_a_cancel_during_the_finish_comes_too_late(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    cancel = _request(stack, requests.cancel, job_id)
    error = _overlap(stack, _finish(stack, ticket), cancel)
    assert isinstance(error, Conflict)
    assert "already succeeded" in error.detail
    assert stack.job(job_id).state == JobState.SUCCEEDED


def test_a_failure_during_the_cancel_ends_cancelled(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    cancel = _request(stack, requests.cancel, job_id)
    assert _overlap(stack, cancel, _fail(stack, ticket, Reason.KILLED)) is None
    assert stack.job(job_id).state == JobState.CANCELLED


def test_a_claim_during_the_pause_finds_nothing(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    (ticket,) = stack.tick()
    error = _overlap(stack, _request(stack, requests.pause, job_id), _claim(stack, ticket))
    assert isinstance(error, LeaseLost)
    assert stack.job(job_id).state == JobState.QUEUED


def test_a_pause_during_the_claim_is_an_order(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    (ticket,) = stack.tick()
    assert _overlap(stack, _claim(stack, ticket), _request(stack, requests.pause, job_id)) is None
    assert stack.job(job_id).state == JobState.RUNNING
    (order,) = stack.report(ticket).orders
    assert order.order == "pause"


def test_of_two_retries_one_is_taken(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    stack.fail(stack.claimed(), Reason.BAD_INPUT)
    retry = _request(stack, requests.retry, job_id)
    assert isinstance(_overlap(stack, retry, retry), Conflict)
    with stack.database.reading() as session:
        retried = select(func.count()).where(Event.job_id == job_id, Event.type == "retried")
        assert session.scalar(retried) == 1


# --- People against the scheduler ---------------------------------------------------------


@pytest.mark.parametrize("action", [requests.cancel, requests.pause])
def test_what_is_being_stopped_is_not_placed(stack: Stack, action: Callable[..., object]) -> None:
    worker_id = stack.worker()
    job_id = stack.submit()
    _overlap(stack, _request(stack, action, job_id), _place(job_id, worker_id))
    assert stack.job(job_id).attempts == []
    assert stack.tick() == []


@pytest.mark.parametrize("action", [requests.cancel, requests.pause])
def test_what_is_being_placed_is_withdrawn(stack: Stack, action: Callable[..., object]) -> None:
    worker_id = stack.worker()
    job_id = stack.submit()
    assert _overlap(stack, _place(job_id, worker_id), _request(stack, action, job_id)) is None
    (attempt,) = stack.job(job_id).attempts
    assert attempt.state == AttemptState.CANCELLED
    assert attempt.reason == (Reason.PAUSED if action is requests.pause else Reason.CANCELLED)


def test_a_resume_during_a_tick_is_placed_by_the_next(stack: Stack) -> None:
    worker_id = stack.worker()
    job_id = stack.submit()
    stack.pause(job_id)
    _overlap(stack, _request(stack, requests.resume, job_id), _place(job_id, worker_id))
    stack.tick()
    (attempt,) = stack.job(job_id).attempts
    assert attempt.state == AttemptState.PLACED


# --- The scheduler against workers --------------------------------------------------------


def test_a_report_during_the_loss_is_adopted(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    assert (
        _overlap(stack, lambda session: stack.lose(session, ticket), _report(stack, ticket)) is None
    )
    job = stack.job(job_id)
    assert (job.state, job.lost, job.not_before, job.error) == (JobState.RUNNING, 0, None, None)


def test_a_report_during_loss_and_placement_is_refused(stack: Stack) -> None:
    stack.worker("a")
    other = stack.worker("b")
    job_id = stack.submit()
    ticket = stack.claimed()

    def lose_and_place(session: Session) -> None:
        stack.lose(session, ticket)
        assert _place(job_id, other)(session)

    assert isinstance(_overlap(stack, lose_and_place, _report(stack, ticket)), LeaseLost)


def test_a_placement_during_the_adoption_is_let_be(stack: Stack) -> None:
    stack.worker("a")
    other = stack.worker("b")
    job_id = stack.submit()
    ticket = stack.claimed()
    with stack.database.transaction() as session:
        stack.lose(session, ticket)
    assert _overlap(stack, _report(stack, ticket), _place(job_id, other)) is None
    assert [a.state for a in stack.job(job_id).attempts] == [AttemptState.RUNNING]


def test_an_adoption_during_the_placement_comes_too_late(stack: Stack) -> None:
    stack.worker("a")
    other = stack.worker("b")
    job_id = stack.submit()
    ticket = stack.claimed()
    with stack.database.transaction() as session:
        stack.lose(session, ticket)
    error = _overlap(stack, _place(job_id, other), _report(stack, ticket))
    assert isinstance(error, LeaseLost)


def test_a_tick_leaves_a_lease_alone_that_is_being_renewed(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    stack.let_pass(1000)
    stack.without_grace()
    with stack.database.transaction() as session:
        _report(stack, ticket)(session)
        if session.get_bind().dialect.name == "postgresql":  # SQLite's would wait for the commit
            stack.tick()
    stack.tick()
    assert stack.job(job_id).state == JobState.RUNNING
    assert stack.job(job_id).lost == 0


def _hello(stack: Stack, worker_id: str) -> Step:
    message = Hello(boot_id="next", machine=MACHINE, slots=1)
    config = Settings(broker_url="redis://unused")

    def hello(session: Session) -> None:
        fleet.hello(session, session.get_one(Worker, worker_id), message, config)

    return hello


def test_a_claim_of_the_process_before_is_refused(stack: Stack) -> None:
    worker_id = stack.worker()
    stack.submit()
    (ticket,) = stack.tick()
    error = _overlap(stack, _hello(stack, worker_id), _claim(stack, ticket))
    assert isinstance(error, LeaseLost)
    stack.boots[worker_id] = "next"
    assert stack.tick() == [ticket], "the next process gets a ticket of its own"
    stack.claim(ticket)


def test_a_report_of_the_process_before_adopts_nothing(stack: Stack) -> None:
    worker_id = stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    error = _overlap(stack, _hello(stack, worker_id), _report(stack, ticket))
    assert isinstance(error, LeaseLost)
    assert stack.job(job_id).attempts[0].reason == Reason.WORKER_CRASHED


# --- What waits for two -------------------------------------------------------------------


def _diamond(stack: Stack) -> tuple[list[Ticket], str]:
    """Two jobs that run, and one that needs both."""
    stack.worker(slots=2)
    adapter = stack.submit()
    model = stack.submit({"kind": "quantize", "model": "team/base"})
    spec = {"kind": "eval", "model": f"job:{model}", "adapter": f"job:{adapter}"}
    waiting = stack.submit({**spec, "data": "team/wikisql"})
    tickets = stack.tick()
    for ticket in tickets:
        stack.claim(ticket)
    return tickets, waiting


def _publish(stack: Stack, ticket: Ticket) -> Step:
    def publish(session: Session) -> None:
        worker = session.get_one(Worker, ticket.worker_id)
        message = stack.finish_message(session, ticket)
        assignments.finish(session, stack.blobs, worker, ticket.attempt_id, message)

    return publish


def test_the_last_two_that_finish_at_once_let_it_go_on(stack: Stack) -> None:
    tickets, waiting = _diamond(stack)
    first, second = (_publish(stack, ticket) for ticket in tickets)
    assert _overlap(stack, first, second) is None
    assert stack.job(waiting).state == JobState.QUEUED


def _submit_needing(stack: Stack, job_id: str, made: list[str]) -> Step:
    spec = {"kind": "eval", "model": "team/base", "adapter": f"job:{job_id}"}
    request = parse(JobRequest, {"spec": {**spec, "data": "team/wikisql"}})
    return lambda session: made.append(submit.submit(session, stack.actor, request).id)


def test_a_job_submitted_while_what_it_needs_finishes_is_queued(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    made: list[str] = []
    needing = _submit_needing(stack, job_id, made)
    assert _overlap(stack, _publish(stack, ticket), needing) is None
    assert stack.job(made[0]).state == JobState.QUEUED


def test_a_job_finishing_while_one_is_submitted_that_needs_it_lets_it_go_on(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    made: list[str] = []
    needing = _submit_needing(stack, job_id, made)
    assert _overlap(stack, needing, _publish(stack, ticket)) is None
    assert stack.job(made[0]).state == JobState.QUEUED


@pytest.mark.parametrize("retry_first", [True, False])
def test_nothing_waits_for_a_job_that_failed_meanwhile(stack: Stack, retry_first: bool) -> None:
    (one, other), waiting = _diamond(stack)
    stack.fail(one, Reason.BAD_INPUT)
    assert stack.job(waiting).state == JobState.CANCELLED
    with stack.database.reading() as session:
        failed = session.get_one(Attempt, one.attempt_id).job_id
    steps = [_request(stack, requests.retry, failed), _fail(stack, other, Reason.BAD_INPUT)]
    _overlap(stack, *(steps if retry_first else steps[::-1]))
    assert stack.job(waiting).state == JobState.CANCELLED
    with stack.database.reading() as session:
        also = session.get_one(Attempt, other.attempt_id).job_id
    stack.retry(also)
    assert stack.job(waiting).state == JobState.WAITING, "both are on their way again"


def test_two_that_fail_at_once_cancel_what_needs_both_once(stack: Stack) -> None:
    (one, other), waiting = _diamond(stack)
    first, second = (_fail(stack, t, Reason.BAD_INPUT) for t in (one, other))
    assert _overlap(stack, first, second) is None
    with stack.database.reading() as session:
        ended = select(func.count()).where(Event.job_id == waiting, Event.type == "cancelled")
        assert session.scalar(ended) == 1
