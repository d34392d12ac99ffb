"""The only place that changes the state of jobs and attempts.

Every change is a compare-and-set on the state it starts from, follows the transition table, and
writes its event in the same transaction. An attempt's id is the fencing token: what a worker
sends counts only while *that* attempt is live and its own. docs/state_machine.md draws it.
"""

from datetime import datetime, timedelta

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from espalier.errors import Conflict, LeaseLost, NotFound
from espalier.messages import Failure
from espalier.settings import settings
from espalier.states import (
    ATTEMPT_LIVE,
    ATTEMPT_TRANSITIONS,
    JOB_ENDED,
    JOB_TRANSITIONS,
    NOT_CHARGED,
    NOT_RETRIED,
    ArtifactKind,
    AttemptState,
    JobState,
    Reason,
)
from scheduler import access
from scheduler.access import Actor
from scheduler.db import now
from scheduler.events import record
from scheduler.models import Attempt, Job, JobDependency, JobInput, Worker
from scheduler.placement import Placement

#: What an input's role needs the artifact to be.
ROLE_KIND = {
    "model": ArtifactKind.MODEL,
    "data": ArtifactKind.DATASET,
    "adapter": ArtifactKind.ADAPTER,
}


# --- The two transition functions ---------------------------------------------------------


def move_job(session: Session, job: Job, to: JobState) -> None:
    """Change a job's state; Conflict when it is no longer where the caller saw it."""
    if to not in JOB_TRANSITIONS[JobState(job.state)]:
        raise Conflict(f"Job {job.id} is {job.state}: it cannot become {to}.")
    result = session.execute(
        update(Job).where(Job.id == job.id, Job.state == job.state).values(state=to),
        execution_options={"synchronize_session": False},
    )
    _one_row(result, Conflict(f"Job {job.id} was changed by somebody else. Look again."))
    session.refresh(job, ["state"])


def move_attempt(session: Session, attempt: Attempt, to: AttemptState) -> None:
    """Change an attempt's state; LeaseLost when it is no longer where the caller saw it."""
    if to not in ATTEMPT_TRANSITIONS[AttemptState(attempt.state)]:
        raise LeaseLost(f"Attempt {attempt.id} is {attempt.state}: it cannot become {to}.")
    result = session.execute(
        update(Attempt)
        .where(
            Attempt.id == attempt.id,
            Attempt.worker_id == attempt.worker_id,
            Attempt.state == attempt.state,
        )
        .values(state=to),
        execution_options={"synchronize_session": False},
    )
    _one_row(result, LeaseLost(f"Attempt {attempt.id} has been ended by the scheduler."))
    session.refresh(attempt, ["state"])


def _one_row(result: object, error: Conflict) -> None:
    assert isinstance(result, CursorResult)
    if result.rowcount != 1:
        raise error


# --- From queue to worker -----------------------------------------------------------------


def queue(session: Session, job: Job, moment: datetime, message: str) -> None:
    """Make a job ready to be placed."""
    move_job(session, job, JobState.QUEUED)
    job.queued_at, job.phase, job.progress = moment, None, None
    record(session, moment, job, "queued", message)


def place(session: Session, job: Job, placement: Placement, moment: datetime) -> Attempt:
    """Give a queued job to a worker: its next attempt, whose ticket is still to be sent.

    A second live attempt of the same job is refused by the database (``uq_attempts_live_job``).
    """
    numbers = select(Attempt.number).where(Attempt.job_id == job.id)
    attempt = Attempt(
        job_id=job.id,
        worker_id=placement.worker_id,
        number=max(session.scalars(numbers), default=0) + 1,
        state=AttemptState.PLACED,
        placed_at=moment,
    )
    session.add(attempt)
    session.flush()
    worker = session.get_one(Worker, placement.worker_id)
    record(session, moment, job, "placed", f"Placed on {worker.name}.", attempt=attempt)
    return attempt


def own_attempt(session: Session, worker: Worker, attempt_id: str) -> Attempt:
    """Return the worker's attempt, locked; another's is as unknown as none."""
    attempt = session.scalar(
        select(Attempt)
        .where(Attempt.id == attempt_id, Attempt.worker_id == worker.id)
        .with_for_update()
        .execution_options(populate_existing=True)  # it may have been read before it was locked
    )
    if attempt is None:
        raise NotFound(f"Worker {worker.name} has no attempt {attempt_id}.")
    return attempt


def take(session: Session, worker: Worker, attempt: Attempt, boot_id: str) -> bool:
    """Let ``worker`` hold the attempt: placed → running. False when it held it already.

    The same process may ask again (its answer was lost on the way); anybody else gets LeaseLost.
    """
    moment = now(session)
    job = attempt.job
    if attempt.state == AttemptState.RUNNING and attempt.boot_id == boot_id:
        return False
    if attempt.state != AttemptState.PLACED:
        raise LeaseLost(f"Attempt {attempt.id} is {attempt.state}: there is nothing to claim.")
    move_attempt(session, attempt, AttemptState.RUNNING)
    move_job(session, job, JobState.RUNNING)
    attempt.boot_id, attempt.claimed_at = boot_id, moment
    extend_lease(attempt, moment)
    worker.unclaimed = 0
    worker.seen_at = moment
    job.started_at = job.started_at or moment
    job.proofs, job.tables, job.error, job.reason = [], [], None, None
    record(session, moment, job, "claimed", f"{worker.name} started it.", attempt=attempt)
    return True


def extend_lease(attempt: Attempt, moment: datetime) -> None:
    """Renew the right to publish, by the database's clock."""
    attempt.lease_expires_at = moment + timedelta(seconds=settings().lease_seconds)


def hold(session: Session, worker: Worker, attempt_id: str, boot_id: str) -> Attempt:
    """Return the attempt if this process of this worker holds its lease; else raise LeaseLost.

    An attempt that was given up while its worker was away is adopted again as long as its job
    has not been placed elsewhere: nothing runs twice, and no work is thrown away.
    """
    attempt = own_attempt(session, worker, attempt_id)
    if attempt.boot_id != boot_id:
        raise LeaseLost(f"Attempt {attempt.id} was claimed by another process of {worker.name}.")
    if attempt.state == AttemptState.LOST and _adoptable(session, attempt):
        moment = now(session)
        move_attempt(session, attempt, AttemptState.RUNNING)
        move_job(session, attempt.job, JobState.RUNNING)
        attempt.finished_at, attempt.reason = None, None
        attempt.job.lost = max(attempt.job.lost - 1, 0)
        extend_lease(attempt, moment)
        session.flush()
        record(session, moment, attempt.job, "adopted", f"{worker.name} is back.", attempt=attempt)
    if attempt.state != AttemptState.RUNNING:
        raise LeaseLost(f"Attempt {attempt.id} is {attempt.state}: its lease has ended.")
    return attempt


def _adoptable(session: Session, attempt: Attempt) -> bool:
    if attempt.job.state != JobState.QUEUED or attempt.job.cancel_requested_at:
        return False
    if attempt.worker.boot_id != attempt.boot_id:  # a successor of that process said hello
        return False
    newer = select(Attempt.id).where(
        Attempt.job_id == attempt.job_id, Attempt.number > attempt.number
    )
    return session.scalar(newer.limit(1)) is None


# --- How an attempt ends ------------------------------------------------------------------


def succeed(session: Session, attempt: Attempt, outputs: dict[str, str]) -> None:
    """End attempt and job as succeeded, and let what waited for it go on."""
    moment, job = now(session), attempt.job
    _end_attempt(session, attempt, AttemptState.SUCCEEDED, Reason.OK, moment)
    made = ", ".join(outputs.values())
    _end_job(session, job, JobState.SUCCEEDED, Reason.OK, moment, f"Published {made}.")
    for dependant in _dependants(session, job, JobState.WAITING):
        promote(session, dependant, moment)


def fail(session: Session, attempt: Attempt, reason: Reason, error: Failure | None) -> None:
    """End an attempt as failed, then decide what becomes of its job."""
    moment, job = now(session), attempt.job
    attempt.error = error.model_dump(mode="json") if error else None
    _end_attempt(session, attempt, AttemptState.FAILED, reason, moment)
    text = error.message if error else reason.value
    record(session, moment, job, "attempt_failed", text, attempt=attempt, reason=reason.value)
    _after_attempt(session, job, reason, attempt.error, moment)


def stop(session: Session, attempt: Attempt) -> None:
    """End an attempt whose worker has stopped it on order, and its job."""
    moment, job = now(session), attempt.job
    _end_attempt(session, attempt, AttemptState.CANCELLED, Reason.CANCELLED, moment)
    if job.cancel_requested_at:
        _end_job(session, job, JobState.CANCELLED, Reason.CANCELLED, moment, "Cancelled.")
    else:
        _after_attempt(session, job, Reason.WORKER_STOPPED, None, moment)


def lose(session: Session, attempt: Attempt, reason: Reason, message: str) -> None:
    """Give up an attempt whose worker is not heard of; its job goes back to the queue."""
    moment, job = now(session), attempt.job
    _end_attempt(session, attempt, AttemptState.LOST, reason, moment)
    record(session, moment, job, "lost", message, attempt=attempt, reason=reason.value)
    error: dict[str, object] = {"code": reason.value, "message": message, "hint": None}
    _after_attempt(session, job, reason, error, moment)


def _end_attempt(
    session: Session, attempt: Attempt, state: AttemptState, reason: Reason, moment: datetime
) -> None:
    move_attempt(session, attempt, state)
    attempt.reason, attempt.finished_at, attempt.memory_bytes = reason, moment, None


def _after_attempt(
    session: Session,
    job: Job,
    reason: Reason,
    error: dict[str, object] | None,
    moment: datetime,
) -> None:
    """Again, set aside, or over: infrastructure faults are not charged to ``max_attempts``."""
    if reason in NOT_CHARGED:
        job.lost += 1
    else:
        job.charged += 1
    job.error = error
    if job.cancel_requested_at:
        _end_job(session, job, JobState.CANCELLED, Reason.CANCELLED, moment, "Cancelled.")
    elif reason in NOT_RETRIED or job.charged >= job.max_attempts:
        text = str(error["message"]) if error else f"Failed: {reason.value}."
        _end_job(session, job, JobState.FAILED, reason, moment, text)
    elif job.lost >= settings().lost_limit:
        text = f"Set aside: {job.lost} attempts were lost in a row. Look at the workers' logs."
        job.error = {"code": reason.value, "message": text, "hint": "Retry it when they are well."}
        _end_job(session, job, JobState.FAILED, reason, moment, text)
    else:
        _again(session, job, reason, moment)


def _again(session: Session, job: Job, reason: Reason, moment: datetime) -> None:
    if reason not in NOT_CHARGED:
        job.not_before = moment + timedelta(seconds=min(2.0**job.charged, 300.0))
    if job.state == JobState.RUNNING:
        queue(session, job, moment, f"Queued again after {reason.value}.")


def _end_job(
    session: Session, job: Job, state: JobState, reason: Reason, moment: datetime, message: str
) -> None:
    move_job(session, job, state)
    job.finished_at, job.reason, job.phase, job.progress = moment, reason, None, None
    if state == JobState.SUCCEEDED:
        job.error = None
    session.flush()
    record(session, moment, job, state.value, message)
    if state != JobState.SUCCEEDED:
        for dependant in _dependants(session, job, JobState.WAITING):
            text = f"Not run: job {job.id} ({job.kind}) was {state.value}."
            _end_job(session, dependant, JobState.CANCELLED, Reason.UPSTREAM, moment, text)


# --- Dependencies -------------------------------------------------------------------------


def _dependants(session: Session, job: Job, state: JobState) -> list[Job]:
    return list(
        session.scalars(
            select(Job)
            .join(JobDependency, JobDependency.job_id == Job.id)
            .where(JobDependency.needs_id == job.id, Job.state == state)
            .order_by(Job.id)
        )
    )


def unmet(session: Session, job: Job) -> list[Job]:
    """Return the jobs that ``job`` still waits for."""
    return list(
        session.scalars(
            select(Job)
            .join(JobDependency, JobDependency.needs_id == Job.id)
            .where(JobDependency.job_id == job.id, Job.state != JobState.SUCCEEDED)
        )
    )


def promote(session: Session, job: Job, moment: datetime) -> None:
    """Queue a waiting job when all it needs has succeeded, with its inputs pinned."""
    if unmet(session, job):
        return
    for item in session.scalars(select(JobInput).where(JobInput.job_id == job.id)):
        if item.version_id is None and item.from_job_id:
            item.version_id = output_of(session, item.from_job_id, item.role, item.from_role)
    queue(session, job, moment, "All it needs is there.")


def output_of(session: Session, job_id: str, role: str, from_role: str | None) -> str:
    """Return the id of the version that ``job_id`` made for input ``role``.

    Without ``from_role`` it is the one whose artifact is of the kind that the role needs.
    """
    source = session.get_one(Job, job_id)
    for version in source.outputs:
        named = from_role is not None and version.role == from_role
        fits = from_role is None and version.artifact.kind == ROLE_KIND[role]
        if named or fits:
            return version.id
    wanted = from_role or ROLE_KIND[role].value
    raise NotFound(f"Job {job_id} ({source.kind}) made no {wanted}.")


# --- What people ask for ------------------------------------------------------------------


def cancel(session: Session, actor: Actor, job: Job) -> Job:
    """Ask for a job to end. One that runs is ended by its worker, after a checkpoint."""
    # Attempt first, then job, as reports do: the other order could lock each other out.
    live = session.scalar(
        select(Attempt)
        .where(Attempt.job_id == job.id, Attempt.state.in_(ATTEMPT_LIVE))
        .with_for_update()
    )
    session.refresh(job)
    if JobState(job.state) in JOB_ENDED:
        raise Conflict(f"Job {job.id} has already {job.state}: there is nothing to cancel.")
    if job.cancel_requested_at:
        return job
    moment = now(session)
    job.cancel_requested_at = moment
    record(session, moment, job, "cancel_requested", f"Cancel asked for by {actor.name}.")
    access.audit(session, actor, "job.cancel", job.id)
    if live is not None and live.state == AttemptState.PLACED:
        _end_attempt(session, live, AttemptState.CANCELLED, Reason.CANCELLED, moment)
    if job.state != JobState.RUNNING:
        _end_job(session, job, JobState.CANCELLED, Reason.CANCELLED, moment, "Cancelled.")
    return job


def retry(session: Session, actor: Actor, job: Job) -> Job:
    """Bring a failed or cancelled job back, and those that were not run because of it.

    It continues from its last checkpoint; what had succeeded in its pipeline is not run again.
    """
    if job.state not in (JobState.FAILED, JobState.CANCELLED):
        raise Conflict(f"Job {job.id} is {job.state}: only failed and cancelled jobs are retried.")
    access.audit(session, actor, "job.retry", job.id)
    _revive(session, job, now(session), f"Retry asked for by {actor.name}.")
    return job


def _revive(session: Session, job: Job, moment: datetime, message: str) -> None:
    job.cancel_requested_at = job.finished_at = job.not_before = None
    job.charged = job.lost = 0
    job.error = job.reason = None
    session.flush()
    record(session, moment, job, "retried", message)
    move_job(session, job, JobState.WAITING)
    promote(session, job, moment)
    for dependant in _dependants(session, job, JobState.CANCELLED):
        if dependant.reason == Reason.UPSTREAM:
            _revive(session, dependant, moment, f"Waits again for job {job.id}.")
