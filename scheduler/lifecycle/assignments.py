"""What a worker is told and what it hands back: claim and finish."""

import hashlib
import json
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import Conflict, LeaseLost
from espalier.messages import (
    Assignment,
    Checkpoint,
    Claim,
    FileEntry,
    Finish,
    Finished,
    Input,
    OutputManifest,
    Source,
)
from espalier.settings import settings
from espalier.specs import SPECS, Spec, parse
from espalier.states import ArtifactKind, AttemptState, JobState, Kind
from scheduler import models
from scheduler.bytes.blobrows import Digests
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import crowning, registry
from scheduler.db import Database, now
from scheduler.lifecycle import jobs
from scheduler.lifecycle.roles import role_kind
from scheduler.models import Attempt, Job, JobInput, Version, Worker
from scheduler.placing import fleet, holdings


def claim(session: Session, worker: Worker, attempt_id: str, message: Claim) -> Assignment:
    """Let the worker start its attempt; LeaseLost when there is nothing to claim (any more).

    Asked again by the same process it gives the same answer, also when the job is to end by now:
    that process runs the attempt, and hears so with its first report.
    """
    attempt = jobs.own_attempt(session, worker, attempt_id)
    if worker.boot_id != message.boot_id:
        raise LeaseLost(f"Worker {worker.name} was started again since: say hello first.")
    if attempt.state == AttemptState.PLACED:
        if attempt.job.cancel_requested_at:
            raise Conflict(f"Job {attempt.job_id} is being cancelled.")
        if attempt.job.pause_requested_at or attempt.preempt_requested_at:
            raise Conflict(f"Job {attempt.job_id} is paused.")
    resume = _resume(session, attempt.job)
    if jobs.take(session, worker, attempt, message.boot_id):
        attempt.resumed_from_step = resume.step if resume else None
    inputs = tuple(_input(session, i) for i in attempt.job.inputs)
    return Assignment(
        attempt_id=attempt.id,
        attempt_number=attempt.number,
        job_id=attempt.job_id,
        kind=Kind(attempt.job.kind),
        spec=_spec(attempt.job),
        inputs=inputs,
        resume=resume,
        sources=_sources(session, worker, attempt, inputs, resume),
        lease_seconds=settings().lease_seconds,
        report_seconds=settings().report_seconds,
    )


def _sources(
    session: Session,
    worker: Worker,
    attempt: Attempt,
    inputs: tuple[Input, ...],
    resume: Checkpoint | None,
) -> tuple[Source, ...]:
    """Return which siblings hold what the attempt needs and its worker lacks."""
    files = [file for item in inputs for file in item.files]
    files += resume.files if resume else ()
    away = fleet.away_after(settings())
    return holdings.sources(session, worker, files, now(session), away, attempt.id)


def _spec(job: Job) -> Spec:
    """What was asked for, with what the ladder has changed since."""
    return parse(SPECS[Kind(job.kind)], {**job.spec, **job.overrides})


def _resume(session: Session, job: Job) -> Checkpoint | None:
    newest = session.scalar(
        select(models.Checkpoint)
        .where(models.Checkpoint.job_id == job.id)
        .order_by(models.Checkpoint.step.desc())
        .limit(1)
    )
    if newest is None:
        return None
    return Checkpoint(step=newest.step, files=tuple(FileEntry(**f) for f in newest.files))


def _input(session: Session, item: JobInput) -> Input:
    if item.hub_repo:
        return Input(
            role=item.role,
            ref=item.ref,
            kind=role_kind(item.role),
            commit="",
            hub_repo=item.hub_repo,
            hub_revision=item.hub_revision,
        )
    version = session.get_one(Version, item.version_id)
    return Input(
        role=item.role,
        ref=registry.label(version),
        kind=ArtifactKind(version.artifact.kind),
        commit=version.commit,
        files=tuple(FileEntry(path=f.path, sha256=f.sha256, size=f.size) for f in version.files),
    )


def finish(
    session: Session, blobs: Blobs, worker: Worker, attempt_id: str, message: Finish
) -> Finished:
    """End an attempt: publish what it made, move its job on, in the caller's one transaction.

    Refused with LeaseLost when the attempt is not this process's any more; a repeat of a finish
    that was taken gets the answer that the first one got, whatever became of the job since. Says
    the repeat anything else than the first one, it is refused.
    """
    attempt = jobs.own_attempt(session, worker, attempt_id)
    digest = _digest(message)
    if attempt.answer and attempt.boot_id == message.boot_id:
        if attempt.answer["digest"] != digest:
            raise LeaseLost(f"Attempt {attempt.id} has {attempt.state} with another manifest.")
        return Finished.model_validate(attempt.answer["answer"])
    attempt = jobs.hold(session, worker, attempt_id, message.boot_id)
    attempt.peak_memory_bytes = max(
        filter(None, (attempt.peak_memory_bytes, message.peak_memory_bytes)), default=None
    )
    if message.state == "succeeded":
        published = {o.role: _publish(session, blobs, attempt, o) for o in message.outputs}
        session.flush()
        session.refresh(attempt.job, ["outputs"])
        jobs.succeed(session, attempt, published)
        crowning.crown(session, attempt)
    elif message.state == "cancelled":
        jobs.stop(session, attempt)
    else:
        jobs.fail(session, attempt, message.reason, message.error)
    session.flush()
    finished = _finished(attempt)
    attempt.answer = {"digest": digest, "answer": finished.model_dump(mode="json")}
    return finished


def _digest(message: Finish) -> str:
    """Return the sha256 of what a finish says about the work: who says it may change, and when."""
    said = message.model_dump(mode="json", exclude={"boot_id", "peak_memory_bytes"})
    for output in said["outputs"]:
        output["files"].sort(key=lambda file: file["path"])
    said["outputs"].sort(key=lambda output: output["role"])
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _finished(attempt: Attempt) -> Finished:
    outputs = {
        str(v.role): registry.label(v) for v in attempt.job.outputs if v.attempt_id == attempt.id
    }
    return Finished(job_state=JobState(attempt.job.state), outputs=outputs)


def prepare(
    database: Database, blobs: Blobs, worker_id: str, attempt_id: str, message: Finish
) -> None:
    """Do what takes the store's time before `finish`: no lock is held meanwhile.

    Who may not finish is told so by `finish`. Raises InvalidInput for outputs whose files are not
    in the store.
    """
    with database.reading() as session:
        attempt = session.get(Attempt, attempt_id)
        if attempt is None or attempt.state != AttemptState.RUNNING:
            return
        if (attempt.worker_id, attempt.boot_id) != (worker_id, message.boot_id):
            return
    for output in message.outputs:
        composed = partial(_compose, attempt_id, output)
        registry.prepare(database, blobs, output.files, composed)


def _compose(
    attempt_id: str, output: OutputManifest, session: Session, there: dict[str, Digests]
) -> bytes:
    attempt = session.get_one(Attempt, attempt_id)
    job = attempt.job
    (project, name), meta, parents = _described(attempt, output)
    return registry.compose(there, project, name, output.kind, output.files, meta, parents, job)


def _described(
    attempt: Attempt, output: OutputManifest
) -> tuple[crowning.Place, dict[str, object], list[registry.Parent]]:
    """Return place, meta and parents. The main output has the job's name, others theirs behind."""
    job = attempt.job
    name = job.name.split("/")[1]
    if output.role != output.kind:
        name = f"{name}-{output.role}"
    place = crowning.place(job, output) or crowning.Place(job.project, name)
    meta = {**output.meta, "worker": _provenance(attempt), "hub": _hub_inputs(job)}
    return place, meta, [(i.role, i.version) for i in job.inputs if i.version is not None]


def _publish(session: Session, blobs: Blobs, attempt: Attempt, output: OutputManifest) -> str:
    job = attempt.job
    (project, name), meta, parents = _described(attempt, output)
    version = registry.publish(
        session,
        blobs,
        project=project,
        name=name,
        kind=output.kind,
        files=output.files,
        meta=meta,
        parents=parents,
        created_by=job.created_by,
        job=job,
        attempt_id=attempt.id,
        role=output.role,
    )
    return registry.label(version)


def _provenance(attempt: Attempt) -> dict[str, object]:
    machine = attempt.machine or attempt.worker.machine
    return {
        "name": attempt.worker.name,
        "chip": machine.get("chip"),
        "platform": machine.get("platform"),
        "versions": machine.get("versions", {}),
    }


def _hub_inputs(job: Job) -> list[dict[str, str | None]]:
    return [
        {"role": i.role, "repo": i.hub_repo, "revision": i.hub_revision}
        for i in job.inputs
        if i.hub_repo
    ]
