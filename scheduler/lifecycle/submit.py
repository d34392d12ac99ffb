"""From a request to a committed job: inputs pinned, dependencies known, nothing half-made."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import Conflict, EspalierError, InvalidInput, NotFound
from espalier.ids import new_id
from espalier.refs import (
    ArtifactRef,
    HubRef,
    JobRef,
    Ref,
    StepRef,
    check_name,
    parse_artifact,
    parse_ref,
)
from espalier.specs import FuseSpec, JobRequest, PipelineRequest, Spec, TrainSpec
from espalier.states import ArtifactKind, JobState, Kind
from scheduler import access
from scheduler.access import Actor
from scheduler.catalog import lineage, quota, registry
from scheduler.db import now
from scheduler.events import record
from scheduler.lifecycle.jobs import output_of
from scheduler.lifecycle.roles import field_of, output_kind, role_kind, spec_of
from scheduler.models import Artifact, Job, JobDependency, JobInput, Project, Version

DEFAULT_PROJECT = "team"
_SUFFIX = {Kind.EVAL: "eval", Kind.FUSE: "fused", Kind.EXPORT: "gguf"}


@dataclass(frozen=True, slots=True)
class _Setting:
    """What the jobs of one request share."""

    actor: Actor
    project: Project
    priority: int
    max_attempts: int
    moment: datetime
    pipeline_id: str | None = None


def submit(
    session: Session, actor: Actor, request: JobRequest, remarks: Sequence[Sequence[str]] = ()
) -> Job:
    """Commit one job, queued or waiting. Raises InvalidInput, NotFound or Conflict.

    ``remarks`` are those of scheduler.refusals, by spec: they become part of the job's story.
    """
    project = _project(session, actor, request.project, request.name)
    _hold_sources(session, [request.spec])
    moment = now(session)
    shared = _Setting(actor, project, request.priority, request.max_attempts, moment)
    job = _create(session, shared, request.spec, request.name, request.note, None)
    _remark(session, [job], remarks)
    return job


def submit_pipeline(
    session: Session, actor: Actor, request: PipelineRequest, remarks: Sequence[Sequence[str]] = ()
) -> list[Job]:
    """Commit the jobs of a pipeline: all of them, or none."""
    names = [s.name for s in request.steps if s.name]
    project = _project(session, actor, request.project, names[0] if names else None)
    _hold_sources(session, [item.spec for item in request.steps])
    shared = _Setting(
        actor, project, request.priority, request.max_attempts, now(session), new_id()
    )
    jobs: dict[str, Job] = {}
    for item in request.steps:
        spec = _bind_steps(item.spec, {step: job.id for step, job in jobs.items()})
        jobs[item.step] = _create(session, shared, spec, item.name, request.note, item.step)
    _remark(session, list(jobs.values()), remarks)
    return list(jobs.values())


def _remark(session: Session, jobs: list[Job], remarks: Sequence[Sequence[str]]) -> None:
    for job, found in zip(jobs, remarks, strict=False):
        for sentence in found:
            record(session, job.created_at, job, "notice", sentence, level="warning")


def inputs_of(session: Session, actor: Actor, request: JobRequest) -> list[JobInput]:
    """Return the inputs that a job would have, none of them kept. Raises as ``submit`` does."""
    project = _project(session, actor, request.project, request.name)
    shared = _Setting(actor, project, request.priority, request.max_attempts, now(session))
    return _inputs(session, shared, request.spec)[0]


def _project(session: Session, actor: Actor, given: str | None, name: str | None) -> Project:
    """The project a job belongs to is the one its output goes to."""
    wanted = given
    if name and "/" in name:
        owner = parse_artifact(name).project
        if given and owner != given:
            raise InvalidInput(
                f"The output {name} is not in project {given}.",
                errors=[{"loc": ["name"], "msg": f"must begin with {given}/"}],
            )
        wanted = owner
    project = access.project_for(session, actor, wanted or DEFAULT_PROJECT)
    quota.check_room(session, project)
    return project


def _hold_sources(session: Session, specs: Iterable[Spec]) -> None:
    """Keep the jobs that are referred to as they are until the commit, and read them anew.

    One that ended between the look and the commit would not know that somebody waits for it.
    """
    texts = {text for spec in specs for text in spec.refs().values()}
    refs = [parse_ref(text, project=DEFAULT_PROJECT) for text in texts]
    ids = [ref.job for ref in refs if isinstance(ref, JobRef)]
    if ids:
        held = select(Job).where(Job.id.in_(ids)).order_by(Job.id).with_for_update(read=True)
        session.scalars(held.execution_options(populate_existing=True)).all()


def _bind_steps(spec: Spec, jobs: dict[str, str]) -> Spec:
    """Replace ``step:<name>`` by ``job:<id>``, now that the jobs have ids."""
    changes: dict[str, str] = {}
    for role, text in spec.refs().items():
        ref = parse_ref(text, project=DEFAULT_PROJECT)
        if isinstance(ref, StepRef):
            changes[role] = str(JobRef(jobs[ref.step], ref.role))
    if isinstance(spec, TrainSpec | FuseSpec):
        return spec.with_refs(changes)
    return spec.model_copy(update={field_of(spec.kind, role): r for role, r in changes.items()})


def _create(
    session: Session, shared: _Setting, spec: Spec, name: str | None, note: str, step: str | None
) -> Job:
    inputs, needs = _inputs(session, shared, spec)
    job = Job(
        project_id=shared.project.id,
        created_by=shared.actor.user_id,
        pipeline_id=shared.pipeline_id,
        step=step,
        kind=spec.kind,
        name=_output_name(session, shared.project, spec, name, inputs),
        note=note,
        state=JobState.WAITING if needs else JobState.QUEUED,
        spec=spec.model_dump(mode="json"),
        priority=shared.priority,
        max_attempts=shared.max_attempts,
        created_at=shared.moment,
        queued_at=None if needs else shared.moment,
    )
    session.add(job)
    session.flush()
    for item in inputs:
        item.job_id = job.id
        session.add(item)
    session.add_all(JobDependency(job_id=job.id, needs_id=other) for other in sorted(needs))
    record(session, shared.moment, job, "submitted", f"Submitted by {shared.actor.name}.")
    access.audit(session, shared.actor, "job.submit", job.id, {"kind": job.kind, "name": job.name})
    session.flush()
    return job


def _inputs(session: Session, shared: _Setting, spec: Spec) -> tuple[list[JobInput], set[str]]:
    """Resolve every reference now; return the inputs and the ids of the jobs to wait for."""
    inputs: list[JobInput] = []
    needs: set[str] = set()
    for role, text in spec.refs().items():
        ref = parse_ref(text, project=shared.project.name)
        try:
            item = _input(session, shared, role, ref)
        except (NotFound, InvalidInput, Conflict) as error:
            field = field_of(spec.kind, role)
            raise type(error)(
                error.detail,
                hint=_hint(error, text, ref),
                errors=[{"loc": ["spec", field], "msg": error.detail}],
            ) from error
        inputs.append(item)
        if item.from_job_id and item.version_id is None:
            needs.add(item.from_job_id)
    if "data" not in spec.refs() and "data" in type(spec).model_fields:
        inputs.extend(_inherited_data(session, inputs))
        needs.update(i.from_job_id for i in inputs if i.from_job_id and not i.version_id)
    return inputs, needs


def _hint(error: EspalierError, text: str, ref: Ref) -> str | None:
    """Return the next step; mlx-lm's configs name repositories of a hub as we name our own."""
    if not (isinstance(error, NotFound) and isinstance(ref, ArtifactRef) and "/" in text):
        return error.hint
    told = f"{error.hint} " if error.hint else ""
    return f"{told}A repository of a hub is written hf:{ref.path}."


def _input(session: Session, shared: _Setting, role: str, ref: Ref) -> JobInput:
    item = JobInput(role=role, ref=str(ref))
    if isinstance(ref, HubRef):
        if role == "adapter":
            raise InvalidInput(f"{ref}: adapters come from the team's store. Push it first.")
        item.hub_repo, item.hub_revision = ref.repo, ref.revision
    elif isinstance(ref, ArtifactRef):
        access.project_for(session, shared.actor, ref.project)
        version = registry.resolve(session, ref)
        _check_kind(str(ref), role, version.artifact.kind)
        _check_whole(version)
        item.version_id = version.id
    elif isinstance(ref, JobRef):
        _from_job(session, shared, item, role, ref)
    else:
        raise InvalidInput(f"{ref} only means something inside a pipeline.")
    return item


def _from_job(session: Session, shared: _Setting, item: JobInput, role: str, ref: JobRef) -> None:
    source = find_job(session, shared.actor, ref.job)
    if ref.role is None:
        _check_kind(str(ref), role, output_kind(spec_of(source)))
    if source.state in (JobState.FAILED, JobState.CANCELLED):
        raise Conflict(f"Job {source.id} was {source.state}: it has no output. Retry it first.")
    item.from_job_id, item.from_role = source.id, ref.role
    if source.state == JobState.SUCCEEDED:
        item.version_id = output_of(session, source.id, role, ref.role)


def _check_kind(ref: str, role: str, kind: str) -> None:
    needed = role_kind(role)
    if kind != needed:
        raise InvalidInput(f"{ref} is a {kind}: {role} needs a {needed.value}.")


def _check_whole(version: Version) -> None:
    """Refuse what was committed over the hub and lacks what loaders need."""
    lacking = version.meta.get(registry.INCOMPLETE)
    if lacking:
        raise InvalidInput(f"{registry.label(version)}: {lacking}", hint="Commit what is missing.")


def find_job(session: Session, actor: Actor, job_id: str) -> Job:
    """Return a job the actor may see; NotFound otherwise."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"There is no job {job_id}.", hint="`espalier jobs` lists them.")
    try:
        access.project_for(session, actor, job.project.name)
    except NotFound:
        raise NotFound(f"There is no job {job_id}.", hint="`espalier jobs` lists them.") from None
    return job


# --- Data for a proof ---------------------------------------------------------------------


def _inherited_data(session: Session, inputs: list[JobInput]) -> list[JobInput]:
    """Find the data set that a model or adapter was made from: proofs are measured on it."""
    for item in inputs:
        found = (
            _data_of_version(session, item.version_id)
            if item.version_id
            else _data_of_job(session, item.from_job_id)
        )
        if found is not None:
            return [JobInput(role="data", ref=registry.label(found), version_id=found.id)]
    return []


def _data_of_version(session: Session, version_id: str) -> Version | None:
    family = lineage.family(session, session.get_one(Version, version_id))
    for relative in family.ancestors:
        if relative.version.artifact.kind == ArtifactKind.DATASET:
            return relative.version
    return None


def _data_of_job(session: Session, job_id: str | None) -> Version | None:
    """The data of a job that has not run yet: its own input, or that of what it waits for."""
    if job_id is None:
        return None
    items = list(session.scalars(select(JobInput).where(JobInput.job_id == job_id)))
    for item in sorted(items, key=lambda i: i.role != "data"):
        if item.role == "data" and item.version_id:
            return session.get_one(Version, item.version_id)
        found = (
            _data_of_version(session, item.version_id)
            if item.version_id
            else _data_of_job(session, item.from_job_id)
        )
        if found is not None:
            return found
    return None


# --- The output's name --------------------------------------------------------------------


def _output_name(
    session: Session, project: Project, spec: Spec, given: str | None, inputs: list[JobInput]
) -> str:
    ref = (
        parse_artifact(given, project=project.name)
        if given
        else ArtifactRef(project.name, _made_up(session, spec, inputs))
    )
    kind = output_kind(spec)
    names = [ref.name, *(check_name(f"{ref.name}-{role}") for role in _roles(spec))]
    taken = session.scalar(
        select(Artifact)
        .where(
            Artifact.project_id == project.id,
            Artifact.name.in_(names),
            Artifact.deleted_at.is_(None),
            Artifact.kind != kind,
        )
        .order_by(Artifact.name)
        .limit(1)
    )
    if taken is not None:
        raise InvalidInput(
            f"{project.name}/{taken.name} is a {taken.kind} already: a {spec.kind} job makes a"
            f" {kind}. Choose another name.",
            errors=[{"loc": ["name"], "msg": f"taken by a {taken.kind}"}],
        )
    return str(ref)


def _roles(spec: Spec) -> tuple[str, ...]:
    """The outputs that are published beside the main one, or instead of it."""
    return spec.published if spec.kind == "quantize" else ()


def _made_up(session: Session, spec: Spec, inputs: list[JobInput]) -> str:
    """A name people recognise: what it was made from, and how."""
    stems = {i.role: _stem(session, i) for i in inputs}
    if spec.kind == "train":
        name = f"{stems['model']}-{stems['data']}-{spec.fine_tune_type}"
    elif spec.kind == "quantize":
        name = f"{stems['model']}-{spec.label}"
    elif spec.kind == "export":
        name = f"{stems['model']}-{spec.type if spec.format == 'safetensors' else 'gguf'}"
    else:
        name = f"{stems.get('adapter', stems['model'])}-{_SUFFIX[Kind(spec.kind)]}"
    # What comes behind it for a variant must fit as well.
    room = 96 - max((len(role) + 1 for role in _roles(spec)), default=0)
    return name[:room].rstrip("-._")


def _stem(session: Session, item: JobInput) -> str:
    if item.from_job_id:
        return session.get_one(Job, item.from_job_id).name.split("/")[1]
    ref: Any = parse_ref(item.ref, project=DEFAULT_PROJECT)
    return str(ref.repo.split("/")[-1] if isinstance(ref, HubRef) else ref.name)
