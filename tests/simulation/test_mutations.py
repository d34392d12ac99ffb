"""The simulation can see: whatever is taken out of the code under test, it finds out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import text, true, update
from sqlalchemy.orm import Session

from espalier.messages import Report
from scheduler.bytes import gc
from scheduler.lifecycle import ingest, jobs
from scheduler.models import Attempt, Job, Worker
from scheduler.placing import demand, dispatch
from scheduler.placing.placement import Candidate
from tests.simulation.databases import Bench
from tests.simulation.ledger import Ledger
from tests.simulation.simulation import simulate
from tests.simulation.storm import Storm
from tests.simulation.work import Work

SEEDS = 60


@pytest.fixture(autouse=True)
def _kept_before(sqlite_bench: Bench) -> Iterator[None]:
    """A mutation of the schema ends with its test."""
    with sqlite_bench.database.engine.connect() as connection:
        before = connection.execute(
            text("SELECT sql FROM sqlite_master WHERE name = 'uq_attempts_live_job'")
        ).scalar_one()
    yield
    with sqlite_bench.changing_template() as connection:
        connection.execute("DROP INDEX IF EXISTS uq_attempts_live_job")
        connection.execute(before)


def _found(bench: Bench, *mutations: Any) -> str:
    """Return the first violation that a seed finds."""
    with ExitStack() as stack:
        for mutation in mutations:
            stack.enter_context(mutation)
        for seed in range(SEEDS):
            outcome = simulate(seed, bench)
            if outcome.violation and Ledger.watched in outcome.violation:
                return outcome.violation
    return f"nothing was found in {SEEDS} seeds"


def _unfenced(session: Session, worker: Worker, attempt_id: str, boot_id: str) -> Attempt:
    """``hold`` that refuses nobody: whoever names an attempt of its own may write."""
    attempt = session.get_one(Attempt, attempt_id)
    attempt.boot_id = boot_id
    return attempt


def _set_attempt(session: Session, attempt: Attempt, to: str) -> None:
    session.execute(update(Attempt).where(Attempt.id == attempt.id).values(state=to))
    session.refresh(attempt, ["state"])


def _set_job(session: Session, job: Job, to: str) -> None:
    session.execute(update(Job).where(Job.id == job.id).values(state=to))
    session.refresh(job, ["state"])


@contextmanager
def _unguarded() -> Iterator[None]:
    """No compare-and-set: a state is written whatever it was."""
    with (
        patch.object(jobs, "move_attempt", _set_attempt),
        patch.object(jobs, "move_job", _set_job),
    ):
        yield


def test_without_fencing_a_stale_publish_is_found(sqlite_bench: Bench) -> None:
    only = patch.object(Ledger, "watched", "no stale publish")
    stopped = patch.object(Storm, "_crash", Storm._freeze)  # who comes back late may be stale
    unfenced = patch.object(jobs, "hold", _unfenced)
    found = _found(sqlite_bench, unfenced, _unguarded(), only, stopped)
    assert "no stale publish" in found


def test_without_fencing_the_table_still_refuses(sqlite_bench: Bench) -> None:
    """Only ``hold`` is gone: what it let through is refused by compare-and-set, or is found."""
    found = _found(sqlite_bench, patch.object(jobs, "hold", _unfenced))
    assert "nothing was found" not in found


def test_without_the_index_two_live_attempts_are_found(sqlite_bench: Bench) -> None:
    def everybody(session: Session, *_: Any) -> list[Candidate]:
        rows = session.query(Job).filter(Job.state == "queued")
        return [Candidate(job.id, job.priority, job.queued_at or job.created_at) for job in rows]

    with sqlite_bench.changing_template() as connection:
        connection.execute("DROP INDEX uq_attempts_live_job")
    found = _found(sqlite_bench, patch.object(demand, "candidates", everybody))
    assert "one live attempt a job" in found


def test_an_adoption_of_what_runs_elsewhere_is_found(sqlite_bench: Bench) -> None:
    def adopt(session: Session, worker: Worker, attempt: Attempt) -> bool:
        jobs.move_attempt(session, attempt, jobs.AttemptState.RUNNING)
        _set_job(session, attempt.job, "running")
        attempt.reason = attempt.finished_at = None
        jobs.extend_lease(attempt, jobs.now(session))
        session.flush()
        jobs.record(session, jobs.now(session), attempt.job, "adopted", attempt=attempt)
        return True

    found = _found(sqlite_bench, patch.object(jobs, "adopt", adopt))
    assert "nothing was found" not in found


def test_a_batch_taken_twice_is_found(sqlite_bench: Bench) -> None:
    real: Callable[..., Any] = ingest.report

    def again(session: Session, worker: Worker, attempt_id: str, message: Report) -> Any:
        attempt = session.get(Attempt, attempt_id)
        if attempt is not None:
            attempt.last_seq = 0
        return real(session, worker, attempt_id, message)

    assert "nothing was found" not in _found(sqlite_bench, patch.object(ingest, "report", again))


def test_a_fault_of_a_machine_that_is_charged_is_found(sqlite_bench: Bench) -> None:
    found = _found(sqlite_bench, patch.object(jobs, "MACHINE_FAULTS", frozenset()))
    assert "charged" in found


def test_collection_of_what_a_job_goes_on_from_is_found(sqlite_bench: Bench) -> None:
    found = _found(sqlite_bench, patch.object(gc, "_is_past", lambda _: true()))
    assert "checkpoints stay while a job may go on" in found


def test_a_ticket_sent_only_once_is_found(sqlite_bench: Bench) -> None:
    def never(*_: Any) -> list[Any]:
        return []

    found = _found(sqlite_bench, patch.object(dispatch.Dispatcher, "_unclaimed", never))
    assert "no job is stuck" in found


def test_a_checkpoint_that_overtakes_its_reports_is_found(sqlite_bench: Bench) -> None:
    """Who goes on from it would never report what was not reported yet."""
    real = Work._save

    def early(self: Work) -> None:
        real(self)
        assert self.disk.checkpoint is not None
        self.disk.checkpoint.after_seq = 0
        self._check_checkpoint()

    def burn(self: Storm) -> None:
        self._machine().crash(keep_disk=False, back_after=60.0)

    mutations = patch.object(Work, "_save", early), patch.object(Storm, "_crash", burn)
    assert "the curve is whole" in _found(sqlite_bench, *mutations)
