"""What people ask of a job that exists: cancel, pause, resume, retry.

Cancel and pause are flags: what runs is ended by its worker, after a checkpoint. Each of these is
safe against a worker, a scheduler and another person who do something else at the same moment.
"""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import Conflict
from espalier.states import JOB_ENDED, AttemptState, JobState, Reason
from scheduler import access
from scheduler.access import Actor
from scheduler.db import now
from scheduler.events import record
from scheduler.lifecycle import jobs, locks
from scheduler.models import Attempt, Job, JobDependency

_NO_OUTPUT = frozenset({JobState.FAILED, JobState.CANCELLED})


def cancel(session: Session, actor: Actor, job: Job) -> Job:
    """Ask for a job to end. One that runs is ended by its worker, after a checkpoint."""
    live = _open(session, job, "cancel")
    if job.cancel_requested_at:
        return job
    moment = now(session)
    job.cancel_requested_at = moment
    record(session, moment, job, "cancel_requested", f"Cancel asked for by {actor.name}.")
    if live is not None and live.state == AttemptState.PLACED:
        jobs.withdraw(session, live, Reason.CANCELLED, moment)
    if job.state != JobState.RUNNING:
        jobs.end_job(session, job, JobState.CANCELLED, Reason.CANCELLED, moment, "Cancelled.")
    access.audit(session, actor, "job.cancel", job.id)
    return job


def pause(session: Session, actor: Actor, job: Job) -> Job:
    """Keep a job from running until it is resumed. One that runs saves a checkpoint first.

    What waits for it goes on waiting. Pausing twice changes nothing. Raises Conflict when the
    job has ended or is to end.
    """
    live = _open(session, job, "pause")
    if job.cancel_requested_at:
        raise Conflict(f"Job {job.id} is being cancelled: it cannot be paused any more.")
    if job.pause_requested_at:
        return job
    moment = now(session)
    job.pause_requested_at = moment
    record(session, moment, job, "pause_requested", f"Pause asked for by {actor.name}.")
    if live is not None and live.state == AttemptState.PLACED:
        jobs.withdraw(session, live, Reason.PAUSED, moment)
    access.audit(session, actor, "job.pause", job.id)
    return job


def resume(session: Session, actor: Actor, job: Job) -> Job:
    """Let a paused job go on, from its last checkpoint. Raises Conflict when it is not paused.

    A worker that has not heard of the pause yet goes on as if it had never been.
    """
    _open(session, job, "resume")
    if not job.pause_requested_at:
        raise Conflict(f"Job {job.id} is {job.state} and not paused: there is nothing to resume.")
    moment = now(session)
    job.pause_requested_at = None
    record(session, moment, job, "resumed", f"Resumed by {actor.name}.")
    access.audit(session, actor, "job.resume", job.id)
    return job


def retry(session: Session, actor: Actor, job: Job) -> Job:
    """Bring a failed or cancelled job back, and those that were not run because of it.

    It continues from its last checkpoint; what had succeeded in its pipeline is not run again,
    and what the ladder learned about memory stays. Raises Conflict when it did not fail, or
    when what it needs did: that one has to be retried.
    """
    locks.lock(session, job)
    if job.state not in _NO_OUTPUT:
        raise Conflict(f"Job {job.id} is {job.state}: only failed and cancelled jobs are retried.")
    if dead := _dead_needs(session, job):
        raise Conflict(
            f"Job {job.id} needs job {dead[0]}, which did not succeed either.",
            hint=f"Retry job {dead[0]}: jobs that were not run because of it come back with it.",
        )
    moment = now(session)
    _revive(session, job, moment, f"Retry asked for by {actor.name}.")
    revived = dict.fromkeys(jobs.dependants(session, job), job)
    while revived:  # by ascending id, as every lock
        job_id = min(revived)
        cause = revived.pop(job_id)
        found = locks.lock_job(session, job_id)
        not_run = found.state == JobState.CANCELLED and found.reason == Reason.UPSTREAM
        if not_run and not _dead_needs(session, found):
            _revive(session, found, moment, f"Waits again for job {cause.id}.")
            revived |= dict.fromkeys(jobs.dependants(session, found), found)
    access.audit(session, actor, "job.retry", job.id)
    return job


def _open(session: Session, job: Job, action: str) -> Attempt | None:
    """Lock the job and its live attempt, which is returned; Conflict when the job has ended."""
    live = locks.lock(session, job)
    if JobState(job.state) in JOB_ENDED:
        state = "succeeded" if job.state == JobState.SUCCEEDED else f"ended as {job.state}"
        raise Conflict(f"Job {job.id} has already {state}: there is nothing to {action}.")
    return live


def _dead_needs(session: Session, job: Job) -> list[str]:
    """Return the ids of the jobs that this one needs and that will not succeed by themselves."""
    needed = (
        select(Job.id)
        .join(JobDependency, JobDependency.needs_id == Job.id)
        .where(JobDependency.job_id == job.id, Job.state.in_(_NO_OUTPUT))
        .order_by(Job.id)
    )
    return list(session.scalars(needed))


def _revive(session: Session, job: Job, moment: datetime, message: str) -> None:
    job.cancel_requested_at = job.pause_requested_at = None
    job.finished_at = job.not_before = job.queued_at = None
    job.charged = job.lost = 0
    job.error = job.reason = None
    session.flush()
    record(session, moment, job, "retried", message)
    jobs.move_job(session, job, JobState.WAITING)
    impossible = jobs.promote(session, job, moment)
    if impossible:
        jobs.end_job(session, job, JobState.CANCELLED, Reason.UPSTREAM, moment, impossible)
