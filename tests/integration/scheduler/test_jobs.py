"""Jobs and attempts from submission to their end, on both databases."""

import pytest

from espalier.errors import InvalidInput, LeaseLost, NotFound
from espalier.messages import CheckpointPublished, FileEntry, MetricsEvent
from espalier.specs import TrainSpec
from espalier.states import MACHINE_FAULTS, ArtifactKind, JobState, Reason
from scheduler.lifecycle import ingest, jobs
from scheduler.models import Event, Job, Metric
from tests.integration.scheduler.stack import Stack


def test_a_job_goes_from_submission_to_a_published_version(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit(name="team/sql")
    (ticket,) = stack.tick()
    assignment = stack.claim(ticket)
    assert isinstance(assignment.spec, TrainSpec)
    assert assignment.spec.iters == 10
    assert {i.role: i.ref for i in assignment.inputs} == {
        "model": "team/base@v1",
        "data": "team/wikisql@v1",
    }
    assert stack.job(job_id).state == JobState.RUNNING
    finished = stack.finish(ticket)
    assert finished.job_state == JobState.SUCCEEDED
    assert finished.outputs == {"adapter": "team/sql@v1"}
    assert stack.outputs(job_id) == ["team/sql@v1"]


def test_every_step_left_its_event(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    stack.finish(stack.claimed())
    with stack.database.reading() as session:
        events = session.query(Event).filter_by(job_id=job_id).order_by(Event.id)
        assert [e.type for e in events] == ["submitted", "placed", "claimed", "succeeded"]


def test_a_pinned_input_does_not_move(stack: Stack) -> None:
    stack.worker()
    stack.submit()
    stack.artifact("base", ArtifactKind.MODEL, {"config.json": b'{"newer": 1}'})
    (ticket,) = stack.tick()
    refs = {i.role: i.ref for i in stack.claim(ticket).inputs}
    assert refs["model"] == "team/base@v1"


def test_a_job_is_placed_once(stack: Stack) -> None:
    stack.worker("a")
    stack.worker("b")
    stack.submit()
    assert len(stack.tick()) == 1
    assert stack.tick() == []


def test_no_more_jobs_than_slots(stack: Stack) -> None:
    stack.worker(slots=2)
    for _ in range(3):
        stack.submit()
    assert len(stack.tick()) == 2
    assert stack.tick() == []


def test_a_claim_repeated_by_the_same_process_gets_the_same_answer(stack: Stack) -> None:
    stack.worker()
    stack.submit()
    (ticket,) = stack.tick()
    assert stack.claim(ticket) == stack.claim(ticket)


def test_another_worker_cannot_claim(stack: Stack) -> None:
    first, second = stack.worker("a"), stack.worker("b")
    stack.submit()
    (ticket,) = stack.tick()
    other = second if ticket.worker_id == first else first
    with pytest.raises(NotFound), stack.at_work(other) as (session, worker):
        jobs.own_attempt(session, worker, ticket.attempt_id)


def test_a_finish_repeated_publishes_once(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    assert stack.finish(ticket) == stack.finish(ticket)
    assert len(stack.outputs(job_id)) == 1


def test_reports_are_taken_once_and_in_order(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    loss = MetricsEvent(step=10, values={"train_loss": 2.0}, time=0)
    again = MetricsEvent(step=10, values={"train_loss": 9.0}, time=0)
    val = MetricsEvent(step=10, values={"val_loss": 2.5}, time=0)
    stack.report(ticket, 1, events=(loss,), log=({"offset": 0, "text": "one\n"},))
    stack.report(ticket, 1, events=(again,), log=({"offset": 0, "text": "one\n"},))
    stack.report(ticket, 2, events=(val,), log=({"offset": 4, "text": "two\0\n"},))
    with stack.database.reading() as session:
        (point,) = session.query(Metric).filter_by(job_id=job_id)
        assert point.values == {"train_loss": 2.0, "val_loss": 2.5}
        assert session.get_one(Job, job_id).metrics == {**point.values, "step": 10}
        assert session.get_one(Job, job_id).attempts[0].log_bytes == 9


def test_a_lost_lease_frees_the_job_and_fences_the_worker(stack: Stack) -> None:
    stack.worker("a")
    job_id = stack.submit()
    old = stack.claimed()
    stack.let_pass(1000)
    stack.without_grace()
    stack.worker("b")
    (new,) = stack.tick()
    assert new.worker_id != old.worker_id, "the worker that lost it gets it last"
    for late in (lambda: stack.report(old, 9), lambda: stack.finish(old)):
        with pytest.raises(LeaseLost):
            late()
    stack.claim(new)
    stack.finish(new)
    (version,) = [v for v in stack.versions() if v.job_id == job_id]
    assert version.attempt_id == new.attempt_id
    assert stack.job(job_id).charged == 0


def test_a_worker_that_comes_back_in_time_is_adopted(stack: Stack) -> None:
    worker_id = stack.worker("a")
    job_id = stack.submit()
    ticket = stack.claimed()
    with stack.at_work(worker_id) as (_, worker):
        worker.draining = True  # so that the job cannot be placed again
    stack.let_pass(1000)
    stack.without_grace()
    assert stack.tick() == []
    assert stack.job(job_id).state == JobState.QUEUED
    stack.report(ticket, 1)
    assert stack.job(job_id).state == JobState.RUNNING
    assert stack.finish(ticket).job_state == JobState.SUCCEEDED
    assert stack.job(job_id).lost == 0


def test_an_adoption_undoes_exactly_what_the_loss_counted(stack: Stack) -> None:
    stack.worker("a")
    job_id = stack.submit()
    stack.fail(stack.claimed(), Reason.KILLED)
    ticket = stack.claimed()
    before = stack.job(job_id)
    stack.let_pass(1000)
    with stack.database.transaction() as session:
        stack.lose(session, ticket)
    lost = stack.job(job_id)
    assert (lost.lost, lost.error["code"] if lost.error else None) == (2, "lease_lost")
    assert lost.not_before is not None
    stack.report(ticket, 1)
    job = stack.job(job_id)
    assert job.state == JobState.RUNNING
    for name in ("lost", "charged", "not_before", "error", "reason", "queued_at"):
        assert getattr(job, name) == getattr(before, name), name
    assert job.attempts[1].reason is None


def test_nothing_is_given_up_in_the_grace_after_a_start(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    stack.claimed()
    stack.let_pass(1000)
    stack.dispatcher.forgive()
    stack.tick()
    assert stack.job(job_id).state == JobState.RUNNING


def test_a_restarted_worker_gives_its_attempt_back_at_once(stack: Stack) -> None:
    stack.worker("a", boot="first")
    job_id = stack.submit()
    old = stack.claimed()
    stack.worker("a", boot="second")
    assert stack.job(job_id).state == JobState.QUEUED
    stack.boots[old.worker_id] = "first"
    with pytest.raises(LeaseLost):
        stack.finish(old)


def test_a_ticket_that_nobody_claims_is_sent_again_then_given_to_another(stack: Stack) -> None:
    stack.worker("a")
    stack.submit()
    (first,) = stack.tick()
    for _ in range(2):
        stack.let_pass(31)
        stack.hear()
        assert stack.tick() == [first]
    stack.worker("b")
    stack.let_pass(31)
    stack.hear()
    (other,) = stack.tick()
    assert other.attempt_id != first.attempt_id
    assert other.worker_id != first.worker_id
    with pytest.raises(LeaseLost):
        stack.claim(first)


def test_a_job_lost_too_often_is_set_aside(stack: Stack) -> None:
    job_id = stack.submit()
    for n in range(5):
        stack.worker("a", boot=f"boot-{n}")
        stack.let_pass(100)
        (ticket,) = stack.tick()
        stack.claim(ticket)
    stack.worker("a", boot="last")
    job = stack.job(job_id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "set_aside"
    assert "Set aside: 5 attempts" in job.error["message"]
    for number in range(1, 6):
        assert f"#{number} on a (worker_" in job.error["message"], "it says what happened where"


@pytest.mark.parametrize("reason", [Reason.BAD_INPUT, Reason.NAN_LOSS, Reason.PROOF_FAILED])
def test_what_would_fail_again_is_not_retried(stack: Stack, reason: Reason) -> None:
    stack.worker()
    job_id = stack.submit()
    stack.fail(stack.claimed(), reason)
    assert stack.job(job_id).state == JobState.FAILED


def test_other_failures_are_retried_until_max_attempts(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit(max_attempts=2)
    stack.fail(stack.claimed(), Reason.CODE_ERROR)
    assert stack.job(job_id).state == JobState.QUEUED
    assert stack.tick() == [], "it waits for its backoff"
    stack.let_pass(10)
    stack.fail(stack.claimed(), Reason.CODE_ERROR)
    assert stack.job(job_id).state == JobState.FAILED


@pytest.mark.parametrize("reason", sorted(MACHINE_FAULTS - {Reason.UNCLAIMED}))
def test_a_fault_of_a_machine_is_never_charged(stack: Stack, reason: Reason) -> None:
    stack.worker()
    job_id = stack.submit(max_attempts=1)
    first = stack.submit()
    stack.fail(stack.claimed(), reason)
    job = stack.job(job_id)
    assert (job.state, job.lost, job.charged) == (JobState.QUEUED, 1, 0)
    stack.claimed()
    assert stack.job(job_id).state == JobState.RUNNING, "at once, before those that came later"
    assert stack.job(first).state == JobState.QUEUED


def test_a_worker_that_is_told_to_stop_counts_nowhere(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit(max_attempts=1)
    for _ in range(stack.config.lost_limit + 1):
        stack.finish(stack.claimed(), "cancelled", reason=Reason.WORKER_STOPPED)
    job = stack.job(job_id)
    assert (job.state, job.lost, job.charged) == (JobState.QUEUED, 0, 0)
    assert {a.reason for a in job.attempts} == {Reason.WORKER_STOPPED}


def test_a_charged_failure_goes_behind_the_others(stack: Stack) -> None:
    stack.worker()
    first, second = stack.submit(), stack.submit()
    stack.fail(stack.claimed(), Reason.CODE_ERROR)
    stack.let_pass(10)
    stack.claimed()
    assert stack.job(second).state == JobState.RUNNING
    assert stack.job(first).state == JobState.QUEUED


def test_the_next_attempt_continues_from_the_newest_checkpoint(stack: Stack) -> None:
    worker_id = stack.worker()
    job_id = stack.submit()
    stack.claimed()
    stack.worker(boot="again")
    assert stack.job(job_id).lost == 1
    ticket = stack.claimed()
    with stack.at_work(worker_id) as (session, worker):
        for step in (5, 10):
            files = stack.files(session, {"state.json": str(step).encode()})
            message = CheckpointPublished(boot_id=stack.boots[worker_id], step=step, files=files)
            ingest.checkpoint(session, worker, ticket.attempt_id, message)
    assert stack.job(job_id).lost == 0, "it gets on"
    stack.fail(ticket, Reason.KILLED)
    stack.let_pass(10)
    (again,) = stack.tick()
    resume = stack.claim(again).resume
    assert resume is not None
    assert resume.step == 10


def test_a_checkpoint_without_its_blobs_is_refused(stack: Stack) -> None:
    worker_id = stack.worker()
    stack.submit()
    ticket = stack.claimed()
    message = CheckpointPublished(
        boot_id=stack.boots[worker_id],
        step=5,
        files=(FileEntry(path="state.json", sha256="0" * 64, size=1),),
    )
    with (
        pytest.raises(InvalidInput, match="upload them first"),
        stack.at_work(worker_id) as (session, worker),
    ):
        ingest.checkpoint(session, worker, ticket.attempt_id, message)


def test_finish_with_a_missing_blob_publishes_nothing(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    file = {"path": "adapters.safetensors", "sha256": "0" * 64, "size": 1}
    output = {"role": "adapter", "kind": "adapter", "files": [file]}
    with pytest.raises(InvalidInput):
        stack.finish(ticket, outputs=(output,))
    assert stack.outputs(job_id) == []
    assert stack.job(job_id).state == JobState.RUNNING
