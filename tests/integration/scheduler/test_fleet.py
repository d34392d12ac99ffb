"""Workers that start again, on both databases: what is passed on, what is given up, who is refused.

Also what their repeats, late copies and gaps do: nothing twice, nothing out of order.
"""

from collections.abc import Iterable
from datetime import timedelta

import pytest

from espalier.errors import Conflict, LeaseLost
from espalier.ids import new_id
from espalier.messages import (
    CheckpointPublished,
    Failure,
    FileEntry,
    Held,
    Hello,
    LogChunk,
    MetricsEvent,
    OutputManifest,
    Welcome,
)
from espalier.settings import Settings
from espalier.states import ArtifactKind, AttemptState, JobState, Reason
from scheduler.db import now
from scheduler.lifecycle import ingest
from scheduler.models import Attempt, Event, Job, Metric, Worker
from scheduler.models import LogChunk as LogRow
from scheduler.placing import fleet
from scheduler.placing.dispatch import Ticket
from tests.integration.scheduler.stack import MACHINE, Stack

CONFIG = Settings(broker_url="redis://unused")
HERE, COPY = "an-installation", "another-installation"


def hello(
    stack: Stack,
    worker_id: str,
    boot: str,
    *,
    held: Iterable[tuple[str, str]] = (),
    installation: str | None = HERE,
    hostname: str = "studio",
) -> Welcome:
    message = Hello(
        boot_id=boot,
        machine=MACHINE.model_copy(update={"hostname": hostname}),
        installation=installation,
        held=tuple(Held(attempt_id=attempt, boot_id=old) for attempt, old in held),
    )
    with stack.at_work(worker_id) as (session, worker):
        welcome = fleet.hello(session, worker, message, CONFIG)
    stack.boots[worker_id] = boot
    return welcome


def running(stack: Stack) -> tuple[str, Ticket]:
    """A worker of a known installation, and the attempt that it runs."""
    worker_id = stack.worker()
    hello(stack, worker_id, "boot-1")
    job_id = stack.submit()
    ticket = stack.claimed()
    assert ticket.worker_id == worker_id
    return job_id, ticket


def attempt(stack: Stack, ticket: Ticket) -> Attempt:
    with stack.database.reading() as session:
        return session.get_one(Attempt, ticket.attempt_id)


def events(stack: Stack, job_id: str) -> list[str]:
    with stack.database.reading() as session:
        found = session.query(Event).filter_by(job_id=job_id).order_by(Event.id)
        return [event.type for event in found]


def silent_for(stack: Stack, seconds: float) -> None:
    with stack.database.transaction() as session:
        for worker in session.query(Worker):
            worker.seen_at = now(session) - timedelta(seconds=seconds)


# --- Starting again -----------------------------------------------------------------------


def test_a_restart_inherits_what_it_left_on_its_disk_and_finishes_it(stack: Stack) -> None:
    job_id, ticket = running(stack)
    stack.let_pass(120)
    held = [(ticket.attempt_id, "boot-1")]
    assert hello(stack, ticket.worker_id, "boot-2", held=held).inherited == (ticket.attempt_id,)
    found = attempt(stack, ticket)
    assert (found.state, found.boot_id) == (AttemptState.RUNNING, "boot-2")
    assert "inherited" in events(stack, job_id)
    stack.let_pass(120)  # longer than what was left of the old lease
    stack.without_grace()
    stack.tick()
    assert stack.finish(ticket).job_state == JobState.SUCCEEDED
    assert len(stack.job(job_id).attempts) == 1


def test_the_former_process_can_do_nothing_any_more(stack: Stack) -> None:
    _, ticket = running(stack)
    hello(stack, ticket.worker_id, "boot-2", held=[(ticket.attempt_id, "boot-1")])
    stack.boots[ticket.worker_id] = "boot-1"
    with pytest.raises(LeaseLost):
        stack.report(ticket)
    with pytest.raises(LeaseLost):
        stack.finish(ticket)
    assert stack.outputs(attempt(stack, ticket).job_id) == []


def test_hello_said_twice_is_said_once(stack: Stack) -> None:
    job_id, ticket = running(stack)
    held = [(ticket.attempt_id, "boot-1")]
    first = hello(stack, ticket.worker_id, "boot-2", held=held)
    again = hello(stack, ticket.worker_id, "boot-2", held=held)
    assert again == first
    assert events(stack, job_id).count("inherited") == 1


def test_a_restart_that_did_not_hear_its_answer_names_both_processes(stack: Stack) -> None:
    _, ticket = running(stack)
    hello(stack, ticket.worker_id, "boot-2", held=[(ticket.attempt_id, "boot-1")])
    held = [(ticket.attempt_id, boot) for boot in ("boot-1", "boot-2")]
    assert hello(stack, ticket.worker_id, "boot-3", held=held).inherited == (ticket.attempt_id,)
    assert attempt(stack, ticket).boot_id == "boot-3"


@pytest.mark.parametrize("held", [("nothing", "boot-1"), ("it", "another-boot")])
def test_what_is_not_on_its_disk_is_given_up_at_once(stack: Stack, held: tuple[str, str]) -> None:
    job_id, ticket = running(stack)
    named = (ticket.attempt_id if held[0] == "it" else held[0], held[1])
    welcome = hello(stack, ticket.worker_id, "boot-2", held=[named])
    assert welcome.inherited == ()
    found = attempt(stack, ticket)
    assert (found.state, found.reason) == (AttemptState.LOST, Reason.WORKER_CRASHED)
    job = stack.job(job_id)
    assert (job.state, job.charged) == (JobState.QUEUED, 0)


def test_a_lost_attempt_is_inherited_while_its_job_is_placed_nowhere_else(stack: Stack) -> None:
    job_id, ticket = running(stack)
    silent_for(stack, 3600)
    stack.let_pass(3600)
    stack.tick()
    stack.without_grace()
    stack.tick()
    assert attempt(stack, ticket).state == AttemptState.LOST
    held = [(ticket.attempt_id, "boot-1")]
    assert hello(stack, ticket.worker_id, "boot-2", held=held).inherited == (ticket.attempt_id,)
    job = stack.job(job_id)
    assert (job.state, job.lost) == (JobState.RUNNING, 0)
    assert stack.finish(ticket).job_state == JobState.SUCCEEDED


def test_an_attempt_whose_job_went_elsewhere_is_not_inherited(stack: Stack) -> None:
    job_id, ticket = running(stack)
    silent_for(stack, 3600)
    stack.let_pass(3600)
    stack.tick()
    stack.without_grace()
    stack.tick()
    stack.worker("studio-2")
    other = stack.claimed()
    assert other.attempt_id != ticket.attempt_id
    held = [(ticket.attempt_id, "boot-1")]
    assert hello(stack, ticket.worker_id, "boot-2", held=held).inherited == ()
    with pytest.raises(LeaseLost):
        stack.finish(ticket)
    stack.finish(other)
    assert len(stack.outputs(job_id)) == 1


def test_a_ticket_that_was_not_claimed_is_sent_again_after_a_restart(stack: Stack) -> None:
    worker_id = stack.worker()
    hello(stack, worker_id, "boot-1")
    stack.submit()
    (ticket,) = stack.tick()
    hello(stack, worker_id, "boot-2")
    assert [t.attempt_id for t in stack.tick()] == [ticket.attempt_id]


# --- One name, two machines ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("installation", "hostname"), [(COPY, "studio"), (COPY, "mini"), (HERE, "mini")]
)
def test_a_name_that_is_at_work_elsewhere_is_refused(
    stack: Stack, installation: str, hostname: str
) -> None:
    _, ticket = running(stack)
    with pytest.raises(Conflict) as refused:
        hello(
            stack, ticket.worker_id, "boot-2", installation=installation, hostname=hostname,
            held=[(ticket.attempt_id, "boot-1")],
        )  # fmt: skip
    assert "studio-1 is at work already: on studio since" in refused.value.detail
    assert "name of its own" in (refused.value.hint or "")
    stack.boots[ticket.worker_id] = "boot-1"
    stack.report(ticket)  # the first one is not disturbed


def test_a_name_whose_machine_is_gone_may_be_taken_to_another(stack: Stack) -> None:
    _, ticket = running(stack)
    silent_for(stack, fleet.away_after(CONFIG).total_seconds() + 1)
    held = [(ticket.attempt_id, "boot-1")]
    welcome = hello(stack, ticket.worker_id, "boot-2", installation=COPY, held=held)
    assert welcome.inherited == ()
    assert attempt(stack, ticket).reason == Reason.WORKER_CRASHED
    silent_for(stack, 0)
    with pytest.raises(Conflict):  # and is then that one's
        hello(stack, ticket.worker_id, "boot-3")


# --- Repeats, late copies, gaps -----------------------------------------------------------


def metrics(step: int, loss: float) -> MetricsEvent:
    return MetricsEvent(step=step, values={"train_loss": loss}, time=0.0)


def curve(stack: Stack, job_id: str) -> dict[int, float]:
    with stack.database.reading() as session:
        rows = session.query(Metric).filter_by(job_id=job_id)
        return {row.step: row.values["train_loss"] for row in rows}


def log(stack: Stack, ticket: Ticket) -> str:
    with stack.database.reading() as session:
        rows = session.query(LogRow).filter_by(attempt_id=ticket.attempt_id)
        return "".join(row.text for row in rows.order_by(LogRow.offset))


def test_reports_come_twice_late_and_with_gaps_and_count_once(stack: Stack) -> None:
    job_id, ticket = running(stack)
    first = {"events": (metrics(1, 9.0),), "log": (LogChunk(offset=0, text="one\n"),)}
    third = {"events": (metrics(3, 7.0),), "log": (LogChunk(offset=4, text="three\n"),)}
    stack.report(ticket, 1, memory_bytes=10, **first)
    stack.report(ticket, 1, memory_bytes=10, **first)  # its answer was lost on the way
    stack.report(ticket, 3, memory_bytes=30, **third)  # 2 was refused for good
    stack.report(ticket, 1, memory_bytes=10, **first)  # a copy that was long on its way
    stack.report(ticket, 2, memory_bytes=20, events=(metrics(1, 99.0),))
    assert curve(stack, job_id) == {1: 9.0, 3: 7.0}
    assert log(stack, ticket) == "one\nthree\n"
    found = attempt(stack, ticket)
    assert (found.last_seq, found.memory_bytes) == (3, 30)
    assert stack.job(job_id).metrics["step"] == 3


def test_a_log_chunk_that_comes_in_another_batch_is_kept_once(stack: Stack) -> None:
    _, ticket = running(stack)
    chunk = LogChunk(offset=0, text="one\n")
    stack.report(ticket, 1, log=(chunk,))
    stack.report(ticket, 2, log=(chunk, LogChunk(offset=4, text="two\n")))
    assert log(stack, ticket) == "one\ntwo\n"
    assert attempt(stack, ticket).log_bytes == 8


def test_a_restart_goes_on_with_the_numbers_of_the_process_before(stack: Stack) -> None:
    job_id, ticket = running(stack)
    stack.report(ticket, 1, events=(metrics(1, 9.0),))
    hello(stack, ticket.worker_id, "boot-2", held=[(ticket.attempt_id, "boot-1")])
    stack.report(ticket, 1, events=(metrics(1, 99.0),))  # it does not know what had arrived
    stack.report(ticket, 2, events=(metrics(2, 8.0),))
    assert curve(stack, job_id) == {1: 9.0, 2: 8.0}


def test_a_repeated_checkpoint_is_no_progress(stack: Stack) -> None:
    job_id, ticket = running(stack)
    with stack.at_work(ticket.worker_id) as (session, worker):
        files: tuple[FileEntry, ...] = stack.files(session, {"adapters.safetensors": b"c"})
        published = CheckpointPublished(boot_id="boot-1", step=5, files=files)
        ingest.checkpoint(session, worker, ticket.attempt_id, published)
        session.get_one(Job, job_id).lost = 3
        ingest.checkpoint(session, worker, ticket.attempt_id, published)
    assert stack.job(job_id).lost == 3
    assert events(stack, job_id).count("checkpoint") == 1


def test_a_repeated_finish_gets_its_answer_again_whatever_the_job_does(stack: Stack) -> None:
    job_id, ticket = running(stack)
    first = stack.finish(ticket, "failed", reason=Reason.KILLED)
    assert first.job_state == JobState.QUEUED
    stack.claimed()  # the job is running again
    assert stack.finish(ticket, "failed", reason=Reason.KILLED) == first
    assert stack.job(job_id).lost == 1


def test_a_finish_that_says_something_else_than_the_first_is_refused(stack: Stack) -> None:
    job_id, ticket = running(stack)
    taken = stack.finish(ticket)
    with stack.at_work(ticket.worker_id) as (session, _):
        files: tuple[FileEntry, ...] = stack.files(session, {"adapters.safetensors": b"other"})
    other = (OutputManifest(role="adapter", kind=ArtifactKind.ADAPTER, files=files),)
    with pytest.raises(LeaseLost, match="another manifest"):
        stack.finish(ticket, outputs=other)
    failure = Failure(code=Reason.CODE_ERROR, message="no")
    with pytest.raises(LeaseLost):
        stack.finish(ticket, "failed", reason=Reason.CODE_ERROR, error=failure)
    assert stack.finish(ticket) == taken
    assert len(stack.outputs(job_id)) == 1


# --- Claims and orders --------------------------------------------------------------------


def flag(stack: Stack, job_id: str, **flags: bool) -> None:
    with stack.database.transaction() as session:
        job = session.get_one(Job, job_id)
        for name in flags:
            setattr(job, f"{name}_requested_at", now(session))


def test_a_pause_is_ordered_and_a_cancel_wins_over_it(stack: Stack) -> None:
    job_id, ticket = running(stack)
    assert stack.report(ticket, 1).orders == ()
    flag(stack, job_id, pause=True)
    assert [o.order for o in stack.report(ticket, 2).orders] == ["pause"]
    flag(stack, job_id, cancel=True)
    assert [o.order for o in stack.report(ticket, 3).orders] == ["cancel"]


def test_an_attempt_that_makes_way_is_ordered_to_pause(stack: Stack) -> None:
    _, ticket = running(stack)
    with stack.database.transaction() as session:
        session.get_one(Attempt, ticket.attempt_id).preempt_requested_at = now(session)
    (order,) = stack.report(ticket).orders
    assert (order.order, order.attempt_id) == ("pause", ticket.attempt_id)


def test_a_paused_job_is_not_claimed_but_a_repeated_claim_is_answered(stack: Stack) -> None:
    worker_id = stack.worker()
    job_id = stack.submit()
    (ticket,) = stack.tick()
    assert ticket.worker_id == worker_id
    flag(stack, job_id, pause=True)
    with pytest.raises(Conflict, match="paused"):
        stack.claim(ticket)
    with stack.database.transaction() as session:
        session.get_one(Job, job_id).pause_requested_at = None
    first = stack.claim(ticket)
    flag(stack, job_id, pause=True, cancel=True)
    assert stack.claim(ticket) == first


def test_a_claim_hands_out_what_the_ladder_has_changed(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit({"batch_size": 4})
    with stack.database.transaction() as session:
        session.get_one(Job, job_id).overrides = {"micro_batch_size": 2}
    (ticket,) = stack.tick()
    spec = stack.claim(ticket).spec.model_dump()
    assert (spec["batch_size"], spec["micro_batch_size"]) == (4, 2)


def test_a_process_that_was_replaced_claims_nothing(stack: Stack) -> None:
    worker_id = stack.worker()
    hello(stack, worker_id, "boot-1")
    stack.submit()
    (ticket,) = stack.tick()
    hello(stack, worker_id, new_id())
    with pytest.raises(LeaseLost, match="started again"):
        stack.claim(ticket, boot="boot-1")
