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
    ATTEMPT_TRANSITIONS,
    JOB_TRANSITIONS,
    MACHINE_FAULTS,
    NO_FAULTS,
    NOT_CHARGED,
    NOT_RETRIED,
    AttemptState,
    JobState,
    Reason,
)
from scheduler.db import now
from scheduler.events import record
from scheduler.lifecycle import ladder, retries
from scheduler.lifecycle.locks import lock_job
from scheduler.lifecycle.roles import role_kind
from scheduler.models import Attempt, Job, JobDependency, JobInput, Worker
from scheduler.placing.placement import Placement

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


def queue(session: Session, job: Job, moment: datetime, message: str, kind: str = "queued") -> None:
    """Make a job ready to be placed, behind those of its priority that are ready already.

    One that was in the queue before keeps its place: see ``_again`` for who loses it.
    """
    move_job(session, job, JobState.QUEUED)
    job.queued_at, job.phase, job.progress = job.queued_at or moment, None, None
    record(session, moment, job, kind, message)


def place(session: Session, placement: Placement, moment: datetime) -> Attempt | None:
    """Give a queued job to a worker: its next attempt, whose ticket is still to be sent.

    None when the job is being changed by somebody else, or was: it is looked at again soon.
    A second live attempt of the same job is refused by the database (``uq_attempts_live_job``).
    """
    job = session.scalar(
        select(Job)
        .where(
            Job.id == placement.job_id,
            Job.state == JobState.QUEUED,
            Job.cancel_requested_at.is_(None),
            Job.pause_requested_at.is_(None),
        )
        .with_for_update(key_share=True, skip_locked=True)
        .execution_options(populate_existing=True)
    )
    if job is None:
        return None
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
    facts = {"held_bytes": placement.have, "input_bytes": placement.need}
    told = placement.told(worker.name)
    record(session, moment, job, "placed", told, attempt=attempt, **facts)
    return attempt


def withdraw(session: Session, attempt: Attempt, reason: Reason, moment: datetime) -> None:
    """Take a placed attempt back before its worker claims it; its job stays queued."""
    _end_attempt(session, attempt, AttemptState.CANCELLED, reason, moment)


def preempt(session: Session, attempt: Attempt, urgent: Job, moment: datetime) -> None:
    """Ask a running attempt to make room for a job of higher priority."""
    attempt.preempt_requested_at = moment
    text = f"Asked to make room for job {urgent.id}, of priority {urgent.priority}."
    record(session, moment, attempt.job, "preempting", text, attempt=attempt, urgent=urgent.id)


def own_attempt(session: Session, worker: Worker, attempt_id: str) -> Attempt:
    """Return the worker's attempt, locked; another's is as unknown as none.

    Whoever says hello for the worker's next process locks its attempts first: so the worker's
    ``boot_id``, read behind this lock, is that of the process that counts now.
    """
    attempt = session.scalar(
        select(Attempt)
        .where(Attempt.id == attempt_id, Attempt.worker_id == worker.id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    if attempt is None:
        raise NotFound(f"Worker {worker.name} has no attempt {attempt_id}.")
    session.refresh(worker, ["boot_id"])
    return attempt


def take(session: Session, worker: Worker, attempt: Attempt, boot_id: str) -> bool:
    """Let ``worker`` hold the attempt: placed → running. False when it held it already.

    The same process may ask again (its answer was lost on the way); anybody else gets LeaseLost.
    """
    if attempt.state == AttemptState.RUNNING and attempt.boot_id == boot_id:
        return False
    if attempt.state != AttemptState.PLACED:
        raise LeaseLost(f"Attempt {attempt.id} is {attempt.state}: there is nothing to claim.")
    job, moment = lock_job(session, attempt.job_id), now(session)
    move_attempt(session, attempt, AttemptState.RUNNING)
    move_job(session, job, JobState.RUNNING)
    attempt.boot_id, attempt.claimed_at, attempt.machine = boot_id, moment, worker.machine
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
    # Where the boots differ, a successor of that process said hello.
    if attempt.state == AttemptState.LOST and worker.boot_id == boot_id:
        adopt(session, worker, attempt)
    if attempt.state != AttemptState.RUNNING:
        raise LeaseLost(f"Attempt {attempt.id} is {attempt.state}: its lease has ended.")
    return attempt


def adopt(session: Session, worker: Worker, attempt: Attempt) -> bool:
    """Take a locked, lost attempt back, and what its loss counted; False when it is too late.

    Too late is when its job was placed again, ended, or is to end.
    """
    job = lock_job(session, attempt.job_id)
    newer = select(Attempt.id).where(Attempt.job_id == job.id, Attempt.number > attempt.number)
    if job.state != JobState.QUEUED or job.cancel_requested_at or session.scalar(newer.limit(1)):
        return False
    moment = now(session)
    move_attempt(session, attempt, AttemptState.RUNNING)
    move_job(session, job, JobState.RUNNING)
    if attempt.reason in MACHINE_FAULTS:
        job.lost = max(job.lost - 1, 0)
    attempt.finished_at = attempt.reason = job.not_before = job.error = None
    extend_lease(attempt, moment)
    session.flush()
    record(session, moment, job, "adopted", f"{worker.name} is back.", attempt=attempt)
    return True


# --- How an attempt ends ------------------------------------------------------------------


def succeed(session: Session, attempt: Attempt, outputs: dict[str, str]) -> None:
    """End attempt and job as succeeded, and let what waited for it go on."""
    job, moment = lock_job(session, attempt.job_id), now(session)
    _end_attempt(session, attempt, AttemptState.SUCCEEDED, Reason.OK, moment)
    made = ", ".join(outputs.values())
    end_job(session, job, JobState.SUCCEEDED, Reason.OK, moment, f"Published {made}.")


def fail(session: Session, attempt: Attempt, reason: Reason, error: Failure | None) -> None:
    """End an attempt as failed, then decide what becomes of its job."""
    job, moment = lock_job(session, attempt.job_id), now(session)
    attempt.error = error.model_dump(mode="json") if error else None
    _end_attempt(session, attempt, AttemptState.FAILED, reason, moment)
    text = error.message if error else reason.value
    record(session, moment, job, "attempt_failed", text, attempt=attempt, reason=reason.value)
    rung = ladder.climb(session, attempt, moment) if reason == Reason.OUT_OF_MEMORY else None
    job.error = attempt.error
    if rung:
        queue(session, job, moment, "Queued again, to need less memory.")
    else:
        _after_attempt(session, job, reason, moment)


def stop(session: Session, attempt: Attempt) -> None:
    """End an attempt whose worker has stopped it on order; why, the flags say."""
    job, moment = lock_job(session, attempt.job_id), now(session)
    kind, text = "queued", f"{attempt.worker.name} stopped; queued again."
    if job.cancel_requested_at:
        reason = Reason.CANCELLED
    elif attempt.preempt_requested_at:
        reason, kind = Reason.PREEMPTED, "preempted"
        text = f"Made room on {attempt.worker.name}; it goes on when there is a slot again."
    elif job.pause_requested_at:
        reason, kind, text = Reason.PAUSED, "paused", f"{attempt.worker.name} has let it go."
    else:
        reason = Reason.WORKER_STOPPED
    _end_attempt(session, attempt, AttemptState.CANCELLED, reason, moment)
    if reason == Reason.CANCELLED:
        end_job(session, job, JobState.CANCELLED, reason, moment, "Cancelled.")
    else:
        queue(session, job, moment, text, kind)


def lose(session: Session, attempt: Attempt, reason: Reason, message: str) -> None:
    """Give up a locked attempt whose worker is not heard of; its job goes back to the queue."""
    job, moment = lock_job(session, attempt.job_id), now(session)
    _end_attempt(session, attempt, AttemptState.LOST, reason, moment)
    record(session, moment, job, "lost", message, attempt=attempt, reason=reason.value)
    job.error = {"code": reason.value, "message": message, "hint": None}
    _after_attempt(session, job, reason, moment)


def _end_attempt(
    session: Session, attempt: Attempt, state: AttemptState, reason: Reason, moment: datetime
) -> None:
    move_attempt(session, attempt, state)
    attempt.reason, attempt.finished_at, attempt.memory_bytes = reason, moment, None


def _after_attempt(session: Session, job: Job, reason: Reason, moment: datetime) -> None:
    """Again, set aside, or over. Faults of machines are not charged to ``max_attempts``."""
    if reason in MACHINE_FAULTS:
        job.lost += 1
    elif reason not in NO_FAULTS:
        job.charged += 1
    if job.cancel_requested_at:
        end_job(session, job, JobState.CANCELLED, Reason.CANCELLED, moment, "Cancelled.")
    elif reason in NOT_RETRIED or job.charged >= job.max_attempts:
        text = str(job.error["message"]) if job.error else f"Failed: {reason.value}."
        end_job(session, job, JobState.FAILED, reason, moment, text)
    elif job.lost >= settings().lost_limit:
        job.error = retries.set_aside(session, job)
        end_job(session, job, JobState.FAILED, reason, moment, str(job.error["message"]))
    else:
        _again(session, job, reason, moment)


def _again(session: Session, job: Job, reason: Reason, moment: datetime) -> None:
    """Queue it again: at its old place when nobody can charge it with what happened."""
    job.not_before = None
    if reason not in NO_FAULTS:
        job.not_before = retries.not_before(job, reason in MACHINE_FAULTS, moment)
    if reason not in NOT_CHARGED:
        job.queued_at = moment
    if job.state == JobState.RUNNING:
        queue(session, job, moment, f"Queued again after {reason.value}.")


# --- How a job ends, and what hangs on it -------------------------------------------------


def end_job(
    session: Session, job: Job, state: JobState, reason: Reason, moment: datetime, message: str
) -> None:
    """End a locked job. What waits for it goes on, or is cancelled with all that waits for that."""
    _end_one(session, job, state, reason, moment, message)
    ended = dict.fromkeys(dependants(session, job), job)
    while ended:  # by ascending id, whatever the shape of the graph
        job_id = min(ended)
        cause = ended.pop(job_id)
        waiting = lock_job(session, job_id)
        if waiting.state != JobState.WAITING:
            continue
        if cause.state == JobState.SUCCEEDED:
            text = promote(session, waiting, moment)
        else:
            text = f"Not run: job {cause.id} ({cause.kind}) was {cause.state}."
        if text:
            _end_one(session, waiting, JobState.CANCELLED, Reason.UPSTREAM, moment, text)
            for further in dependants(session, waiting):
                ended.setdefault(further, waiting)


def _end_one(
    session: Session, job: Job, state: JobState, reason: Reason, moment: datetime, message: str
) -> None:
    move_job(session, job, state)
    job.finished_at, job.reason, job.phase, job.progress = moment, reason, None, None
    job.pause_requested_at = None
    if state == JobState.SUCCEEDED:
        job.error = None
    session.flush()
    record(session, moment, job, state.value, message)


def dependants(session: Session, job: Job) -> list[str]:
    """Return the ids of the jobs that need this one's output, whatever their state."""
    return list(
        session.scalars(select(JobDependency.job_id).where(JobDependency.needs_id == job.id))
    )


def promote(session: Session, job: Job, moment: datetime) -> str | None:
    """Queue a locked, waiting job when all it needs has succeeded, with its inputs pinned.

    Return why it can never run, if what it needs succeeded without making it.
    """
    unmet = (
        select(Job.id)
        .join(JobDependency, JobDependency.needs_id == Job.id)
        .where(JobDependency.job_id == job.id, Job.state != JobState.SUCCEEDED)
    )
    if session.scalar(unmet.limit(1)):
        return None
    try:
        for item in session.scalars(select(JobInput).where(JobInput.job_id == job.id)):
            if item.version_id is None and item.from_job_id:
                item.version_id = output_of(session, item.from_job_id, item.role, item.from_role)
    except NotFound as error:
        return f"Not run: {error.detail}"
    queue(session, job, moment, "All it needs is there.")
    return None


def output_of(session: Session, job_id: str, role: str, from_role: str | None) -> str:
    """Return the id of the version that ``job_id`` made for input ``role``.

    Without ``from_role`` it is the one whose artifact is of the kind that the role needs; of
    several variants, the one that the job recommends.
    """
    source = session.get_one(Job, job_id)
    for version in sorted(source.outputs, key=lambda v: not v.meta.get("recommended")):
        named = from_role is not None and version.role == from_role
        fits = from_role is None and version.artifact.kind == role_kind(role)
        if named or fits:
            return version.id
    wanted = from_role or role_kind(role).value
    raise NotFound(f"Job {job_id} ({source.kind}) made no {wanted}.")
