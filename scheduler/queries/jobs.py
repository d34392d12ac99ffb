"""Jobs and pipelines as documents, and what happened to them: curves, events, logs."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, joinedload, selectinload
from sqlalchemy.orm.interfaces import ORMOption
from sqlalchemy.sql import ColumnElement

from espalier.errors import NotFound
from espalier.states import (
    ATTEMPT_LIVE,
    JOB_ENDED,
    MACHINE_FAULTS,
    NOT_CHARGED,
    AttemptState,
    JobState,
    Reason,
)
from scheduler.access import Actor, visible_projects
from scheduler.models import (
    Artifact,
    Attempt,
    Event,
    Job,
    JobDependency,
    JobInput,
    LogChunk,
    Metric,
    Project,
    Version,
)
from scheduler.queries import Document, stamp
from scheduler.queries.artifacts import file_documents, version_ref

#: Jobs a page of a list holds, unless told; and at most.
PAGE, MAX_PAGE = 50, 1000
#: Bytes of log an answer holds at most.
LOG_BYTES = 256 << 10

#: Everything a document is made of, in one query a table: lists of jobs are not N+1.
_PARTS: Sequence[ORMOption] = (
    joinedload(Job.project),
    joinedload(Job.user),
    selectinload(Job.attempts).joinedload(Attempt.worker),
    selectinload(Job.inputs)
    .joinedload(JobInput.version)
    .joinedload(Version.artifact)
    .joinedload(Artifact.project),
    selectinload(Job.outputs).joinedload(Version.artifact).joinedload(Artifact.project),
    selectinload(Job.outputs).selectinload(Version.files),
)


@dataclass(frozen=True, slots=True)
class JobFilters:
    """What a list of jobs is narrowed to; empty means all. ``q`` is found in id, name and note.

    ``paused`` is of jobs that have not ended: those that people hold back, or those that go on.
    """

    state: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    project: str | None = None
    pipeline: str | None = None
    q: str | None = None
    paused: bool | None = None


def find_job(session: Session, actor: Actor, job_id: str) -> Job:
    """Return the job with all its document needs loaded. Raises NotFound, foreign ones too."""
    job = session.scalar(
        select(Job)
        .join(Job.project)
        .where(Job.id == job_id, visible_projects(actor))
        .options(*_PARTS)
        .execution_options(populate_existing=True)
    )
    if job is None:
        raise NotFound(f"There is no job {job_id!r}.", hint="`espalier jobs` lists yours.")
    return job


def job_document(session: Session, job: Job) -> Document:
    """Return one job's JSON."""
    return job_documents(session, [job])[0]


def job_documents(session: Session, jobs: Sequence[Job]) -> list[Document]:
    """Return the JSON of many jobs, loading the jobs they need at once."""
    needs: dict[str, list[str]] = {}
    pairs = select(JobDependency.job_id, JobDependency.needs_id).where(
        JobDependency.job_id.in_([job.id for job in jobs])
    )
    for job_id, needs_id in session.execute(pairs.order_by(JobDependency.needs_id)):
        needs.setdefault(job_id, []).append(needs_id)
    return [_document(job, needs.get(job.id, [])) for job in jobs]


def list_jobs(
    session: Session,
    actor: Actor,
    filters: JobFilters = JobFilters(),
    limit: int = PAGE,
    before: str | None = None,
) -> Document:
    """Return ``{"jobs": […], "next": cursor|None}``, newest first; ``before`` is a cursor."""
    limit = max(1, min(limit, MAX_PAGE))
    query = (
        select(Job)
        .join(Job.project)
        .where(visible_projects(actor), *_conditions(filters))
        .order_by(Job.id.desc())  # ids ascend with time
        .limit(limit + 1)
        .options(*_PARTS)
    )
    if before:
        query = query.where(Job.id < before)
    found = list(session.scalars(query))
    page = found[:limit]
    return {
        "jobs": job_documents(session, page),
        "next": page[-1].id if len(found) > limit else None,
    }


def count_jobs(session: Session, actor: Actor, filters: JobFilters) -> dict[str, int]:
    """Return state → number of jobs that pass the filters (state and pause left out).

    Beside the states, ``paused`` counts the open jobs among them that people hold back.
    """
    rest = replace(filters, state=(), paused=None)
    query = (
        select(Job.state, func.count(), func.count(Job.pause_requested_at))
        .join(Job.project)
        .where(visible_projects(actor), *_conditions(rest))
        .group_by(Job.state)
    )
    counts = {state.value: 0 for state in JobState} | {"paused": 0}
    for state, number, held in session.execute(query):
        counts[state] = number
        counts["paused"] += held if state not in JOB_ENDED else 0
    return counts


def pipeline_document(session: Session, actor: Actor, pipeline_id: str) -> Document:
    """Return ``{"id", "project", "jobs": […]}``, in the order submitted. Raises NotFound."""
    jobs = list(
        session.scalars(
            select(Job)
            .join(Job.project)
            .where(Job.pipeline_id == pipeline_id, visible_projects(actor))
            .order_by(Job.id)
            .options(*_PARTS)
        )
    )
    if not jobs:
        raise NotFound(f"There is no pipeline {pipeline_id!r}.")
    return {
        "id": pipeline_id,
        "project": jobs[0].project.name,
        "jobs": job_documents(session, jobs),
    }


# --- What happened ------------------------------------------------------------------------


def metrics_points(session: Session, job: Job, after: int = -1) -> list[Document]:
    """Return the curves' points with ``step > after``, in order of step."""
    points = session.execute(
        select(Metric.step, Metric.values, Metric.created_at)
        .where(Metric.job_id == job.id, Metric.step > after)
        .order_by(Metric.step)
    )
    return [{"step": step, **values, "time": stamp(time)} for step, values, time in points]


def events_after(session: Session, job: Job, after: int = 0, limit: int = 500) -> list[Document]:
    """Return the job's events with ``id > after``, oldest first."""
    events = session.scalars(
        select(Event)
        .where(Event.job_id == job.id, Event.id > after)
        .order_by(Event.id)
        .limit(limit)
    )
    return [
        {
            "id": event.id,
            "type": event.type,
            "message": event.message,
            "data": event.data,
            "attempt": event.attempt_id,
            "time": stamp(event.created_at),
        }
        for event in events
    ]


def latest_event_id(session: Session, job: Job | None = None) -> int:
    """Return the id of the newest event, of one job or of all: a cheap "has anything changed?"."""
    query = select(func.max(Event.id))
    if job is not None:
        query = query.where(Event.job_id == job.id)
    return session.scalar(query) or 0


def log_text(
    session: Session, job: Job, attempt: str | None = None, offset: int = 0, limit: int = LOG_BYTES
) -> Document:
    """Return a piece of an attempt's log (the newest attempt's unless told), from a byte offset.

    ``ended`` says that nothing will follow ``next_offset``. A job without attempts has an empty
    log. Raises NotFound for another job's attempt.
    """
    found = _attempt(job, attempt)
    if found is None:
        ended = job.state not in (JobState.WAITING, JobState.QUEUED, JobState.RUNNING)
        return {"attempt": None, "offset": 0, "next_offset": 0, "text": "", "ended": ended}
    start = position = max(0, offset)
    pieces: list[str] = []
    chunks = session.scalars(
        select(LogChunk)
        .where(LogChunk.attempt_id == found.id, LogChunk.offset + LogChunk.size > start)
        .order_by(LogChunk.offset)
        .execution_options(yield_per=64)
    )
    for chunk in chunks:
        if position - start >= limit:
            break
        pieces.append(_from_byte(chunk.text, position - chunk.offset))
        position = max(position, chunk.offset + chunk.size)
    live = found.state in ATTEMPT_LIVE
    return {
        "attempt": found.id,
        "offset": start,
        "next_offset": position,
        "text": "".join(pieces),
        "ended": not live and position >= found.log_bytes,
    }


def _attempt(job: Job, attempt_id: str | None) -> Attempt | None:
    if attempt_id is None:
        return job.attempts[-1] if job.attempts else None
    for attempt in job.attempts:
        if attempt.id == attempt_id:
            return attempt
    raise NotFound(f"Job {job.id} has no attempt {attempt_id!r}.")


def _from_byte(text: str, skip: int) -> str:
    """Return the text after its first ``skip`` bytes."""
    return text if skip <= 0 else text.encode()[skip:].decode(errors="replace")


# --- Parts of a document ------------------------------------------------------------------


def _conditions(filters: JobFilters) -> Iterable[ColumnElement[bool]]:
    if filters.state:
        yield Job.state.in_(filters.state)
    if filters.kind:
        yield Job.kind.in_(filters.kind)
    if filters.project:
        yield Project.name == filters.project
    if filters.pipeline:
        yield Job.pipeline_id == filters.pipeline
    if filters.paused is not None:
        held = Job.pause_requested_at.is_not(None) & Job.state.not_in(JOB_ENDED)
        yield held if filters.paused else ~held
    if filters.q:
        yield or_(
            Job.id == filters.q,
            Job.name.icontains(filters.q, autoescape=True),
            Job.note.icontains(filters.q, autoescape=True),
        )


def _document(job: Job, needs: list[str]) -> Document:
    open_without_worker = job.state in (JobState.WAITING, JobState.QUEUED)
    last = job.attempts[-1] if job.attempts and not open_without_worker else None
    laddered = {rung["attempt"] for rung in job.rungs}
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "project": job.project.name,
        "name": job.name,
        "note": job.note,
        "spec": job.spec,
        "effective_spec": {**job.spec, **job.overrides} if job.overrides else None,
        "ladder": job.rungs,
        "min_memory_bytes": job.min_memory_bytes,
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "charged": job.charged,
        "lost": job.lost,
        "set_aside": job.state == JobState.FAILED and job.reason in MACHINE_FAULTS,
        "created_by": job.user.name if job.user else None,
        "created_at": stamp(job.created_at),
        "queued_at": stamp(job.queued_at),
        "not_before": stamp(job.not_before),
        "started_at": stamp(job.started_at),
        "finished_at": stamp(job.finished_at),
        "cancel_requested_at": stamp(job.cancel_requested_at),
        "pause_requested_at": stamp(job.pause_requested_at),
        "paused": open_without_worker and job.pause_requested_at is not None,
        "pipeline_id": job.pipeline_id,
        "step": job.step,
        "needs": needs,
        "worker": last.worker.name if last else None,
        "phase": job.phase,
        "progress": job.progress,
        "metrics": job.metrics,
        "proofs": job.proofs,
        "tables": job.tables,
        "reason": job.reason,
        "error": job.error,
        "attempts": [_attempt_document(attempt, laddered) for attempt in job.attempts],
        "inputs": [_input_document(item) for item in job.inputs],
        "outputs": [_output_document(version) for version in job.outputs],
    }


def _attempt_document(attempt: Attempt, laddered: Collection[str]) -> Document:
    """``laddered`` are the attempts whose end was a step of the ladder: they are not charged."""
    failed = attempt.state == AttemptState.FAILED
    return {
        "id": attempt.id,
        "number": attempt.number,
        "worker": attempt.worker.name,
        "state": attempt.state,
        "reason": attempt.reason,
        "charged": failed and attempt.reason not in NOT_CHARGED and attempt.id not in laddered,
        "preempted": attempt.reason == Reason.PREEMPTED,
        "preempt_requested_at": stamp(attempt.preempt_requested_at),
        "placed_at": stamp(attempt.placed_at),
        "started_at": stamp(attempt.claimed_at),
        "finished_at": stamp(attempt.finished_at),
        "lease_expires_at": stamp(attempt.lease_expires_at),
        "memory_bytes": attempt.memory_bytes,
        "peak_memory_bytes": attempt.peak_memory_bytes,
        "log_bytes": attempt.log_bytes,
        "resumed_from_step": attempt.resumed_from_step,
        "error": attempt.error,
    }


def _input_document(item: JobInput) -> Document:
    """``ref`` is what was asked for, ``pinned`` the version it meant; a job's output has neither
    commit nor pin until that job has succeeded."""
    version = item.version
    pinned: dict[str, Any] = {"pinned": None, "commit": None, "kind": None}
    if version is not None:
        pinned = {
            "pinned": version_ref(version),
            "commit": version.commit,
            "kind": version.artifact.kind,
        }
    return {"role": item.role, "ref": item.ref, **pinned, "job": item.from_job_id}


def _output_document(version: Version) -> Document:
    return {
        "role": version.role,
        "kind": version.artifact.kind,
        "ref": version_ref(version),
        "commit": version.commit,
        "size": version.size,
        "files": file_documents(version),
    }
