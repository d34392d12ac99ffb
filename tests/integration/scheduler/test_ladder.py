"""Jobs that run out of memory, on each database: what is changed, kept, told, and when it ends."""

from typing import Any

import pytest

from espalier.messages import CheckpointPublished, Failure, PhaseEvent
from espalier.specs import JobRequest, parse
from espalier.states import Reason
from scheduler.db import now
from scheduler.lifecycle import ingest, submit
from scheduler.models import Event, Worker
from scheduler.placing.dispatch import Ticket
from tests.integration.scheduler.stack import Stack

GIB = 1 << 30
#: As an engine says it; the hint is the ladder's to replace.
NO_MEMORY = Failure(code=Reason.OUT_OF_MEMORY, message="It held 25 GiB.", hint="Less.")


def give(stack: Stack, worker_id: str, memory: int, **changes: Any) -> None:
    """Say what a worker has to give to a job."""
    with stack.database.transaction() as session:
        worker = session.get_one(Worker, worker_id)
        worker.machine = {**worker.machine, "memory_limit": memory}
        for name, value in changes.items():
            setattr(worker, name, value)


def run_out(stack: Stack, ticket: Ticket, **more: Any) -> None:
    """The attempt ends for want of memory."""
    stack.finish(ticket, "failed", reason=Reason.OUT_OF_MEMORY, error=NO_MEMORY, **more)


def events(stack: Stack, job_id: str, kind: str) -> list[Event]:
    with stack.database.reading() as session:
        found = session.query(Event).filter_by(job_id=job_id, type=kind).order_by(Event.id)
        return list(found)


def test_each_time_memory_ends_the_next_attempt_holds_less(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit({"batch_size": 4})
    handed_out = []
    for _ in range(4):
        (ticket,) = stack.tick()
        handed_out.append(stack.claim(ticket).spec)
        if len(handed_out) < 4:
            run_out(stack, ticket)
            assert stack.job(job_id).state == "queued"
    stack.finish(ticket)

    told = [(spec.micro_batch_size, spec.grad_checkpoint) for spec in handed_out]  # type: ignore[union-attr]
    assert told == [(None, False), (2, False), (1, False), (1, True)]
    assert {spec.batch_size for spec in handed_out} == {4}  # type: ignore[union-attr]
    job = stack.job(job_id)
    assert job.state == "succeeded"
    assert (job.charged, job.lost) == (0, 0)
    assert job.spec["micro_batch_size"] is None, "what was asked for is not rewritten"
    assert job.overrides == {"micro_batch_size": 1, "grad_checkpoint": True}
    assert [(r["rung"], r["from"], r["to"]) for r in job.rungs] == [
        ("micro_batch_size", 4, 2),
        ("micro_batch_size", 2, 1),
        ("grad_checkpoint", False, True),
    ]
    failed = [attempt.id for attempt in job.attempts][:3]
    assert [r["attempt"] for r in job.rungs] == failed
    assert {(r["worker"], r["memory_limit"]) for r in job.rungs} == {("studio-1", 24 * GIB)}
    assert job.rungs[0]["message"].startswith(
        "Out of memory on studio-1, which has 24.0 GiB to give: 2 rows are computed at once"
    )
    written = events(stack, job_id, "ladder")
    assert [e.message for e in written] == [r["message"] for r in job.rungs]
    assert [e.attempt_id for e in written] == failed
    assert written[0].data == {
        "rung": "micro_batch_size",
        "from": 4,
        "to": 2,
        "worker": "studio-1",
        "memory_limit": 24 * GIB,
    }


def test_the_next_attempt_goes_on_from_the_checkpoint(stack: Stack) -> None:
    stack.worker()
    stack.submit({"batch_size": 4})
    ticket = stack.claimed()
    with stack.database.transaction() as session:
        files = stack.files(session, {"state.json": b"{}", "adapters.safetensors": b"x"})
    with stack.at_work(ticket.worker_id) as (session, worker):
        boot = stack.boots[ticket.worker_id]
        standing = CheckpointPublished(boot_id=boot, step=8, files=files)
        ingest.checkpoint(session, worker, ticket.attempt_id, standing)
    run_out(stack, ticket)
    (again,) = stack.tick()
    assignment = stack.claim(again)
    assert assignment.resume is not None
    assert assignment.resume.step == 8


def test_with_nothing_left_to_save_it_waits_for_a_worker_with_more(stack: Stack) -> None:
    mini = stack.worker("mini-1")
    give(stack, mini, 16 * GIB)
    job_id = stack.submit({"batch_size": 1, "grad_checkpoint": True})
    ticket = stack.claimed()
    pro = stack.worker("pro-1")  # it came while the job ran
    give(stack, pro, 32 * GIB)
    run_out(stack, ticket)
    job = stack.job(job_id)
    assert job.min_memory_bytes == 16 * GIB + 1
    assert "pro-1 has 32.0 GiB" in job.rungs[0]["message"]
    (ticket,) = stack.tick()
    assert ticket.worker_id == pro


def test_a_model_that_does_not_even_load_is_moved(stack: Stack) -> None:
    mini = stack.worker("mini-1")
    give(stack, mini, 16 * GIB)
    job_id = stack.submit({"batch_size": 8})
    ticket = stack.claimed()
    give(stack, stack.worker("pro-1"), 32 * GIB)
    stack.report(ticket, events=[PhaseEvent(name="loading", time=0.0)])
    run_out(stack, ticket)
    job = stack.job(job_id)
    assert [rung["rung"] for rung in job.rungs] == ["min_memory_bytes"]
    assert job.overrides == {}


def test_a_revoked_worker_has_nothing_to_give(stack: Stack) -> None:
    give(stack, stack.worker("mini-1"), 16 * GIB)
    gone = stack.worker("pro-1", slots=0)
    with stack.database.reading() as session:
        moment = now(session)
    give(stack, gone, 32 * GIB, revoked_at=moment)
    job_id = stack.submit({"batch_size": 1, "grad_checkpoint": True}, max_attempts=1)
    run_out(stack, stack.claimed(), peak_memory_bytes=17 * GIB)
    job = stack.job(job_id)
    assert (job.state, job.reason, job.rungs) == ("failed", "out_of_memory", [])
    assert job.error
    assert job.error["message"] == "It held 25 GiB."
    assert job.error["hint"] == (
        "It held 17.0 GiB when memory ended, with nothing left to save here, and no worker has more"
        " to give: mini-1 has 16.0 GiB. Lower max_seq_length, take a smaller or quantized model, or"
        " add a worker with more memory."
    )


def test_at_the_foot_it_ends(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit({"batch_size": 1, "grad_checkpoint": True}, max_attempts=3)
    run_out(stack, stack.claimed())
    job = stack.job(job_id)
    assert (job.state, job.reason, job.charged) == ("failed", "out_of_memory", 1)
    assert events(stack, job_id, "ladder") == []


def test_on_oom_fail_turns_it_off(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit({"batch_size": 4, "on_oom": "fail"}, max_attempts=3)
    run_out(stack, stack.claimed())
    job = stack.job(job_id)
    assert (job.state, job.reason) == ("failed", "out_of_memory")
    assert (job.overrides, job.rungs, job.min_memory_bytes) == ({}, [], 0)
    assert job.error
    assert job.error["hint"].startswith(
        "on_oom is fail: nothing was changed. With on_oom adapt, 2 rows are computed at once"
    )


def test_a_retry_keeps_what_was_learnt(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit({"batch_size": 4})
    run_out(stack, stack.claimed())
    stack.fail(stack.claimed(), Reason.NAN_LOSS)
    assert stack.job(job_id).state == "failed"
    stack.retry(job_id)
    (ticket,) = stack.tick()
    assert stack.claim(ticket).spec.micro_batch_size == 2  # type: ignore[union-attr]
    assert len(stack.job(job_id).rungs) == 1


def test_a_cancelled_job_climbs_nothing(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit({"batch_size": 4})
    ticket = stack.claimed()
    stack.cancel(job_id)
    run_out(stack, ticket)
    job = stack.job(job_id)
    assert (job.state, job.rungs) == ("cancelled", [])


def test_a_finish_that_comes_twice_climbs_once(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit({"batch_size": 8})
    ticket = stack.claimed()
    run_out(stack, ticket)
    run_out(stack, ticket)
    assert [rung["to"] for rung in stack.job(job_id).rungs] == [4]


@pytest.mark.parametrize(
    ("spec", "overrides"),
    [
        ({"kind": "eval", "model": "team/base", "data": "team/wikisql"}, {"micro_batch_size": 2}),
        ({"kind": "quantize", "model": "team/base"}, {"micro_batch_size": 2}),
    ],
)
def test_measurements_compute_fewer_rows(
    spec: dict[str, Any], overrides: dict[str, int], stack: Stack
) -> None:
    stack.worker()
    with stack.database.transaction() as session:
        job_id = submit.submit(session, stack.actor, parse(JobRequest, {"spec": spec})).id
    run_out(stack, stack.claimed())
    assert stack.job(job_id).overrides == overrides
