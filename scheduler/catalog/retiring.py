"""What people throw away: hidden at once, brought back within the grace, collected after it.

A version that is deleted keeps its number, its lineage and, for the grace, its files. An artifact
that is deleted keeps everything: its versions, aliases, branches, tags and gates come back with
it. Its name is free at once: who takes it begins anew, under numbers that go on; the old versions
are deleted ones of the new line then, and come back singly if at all.
"""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, delete, exists, select, update
from sqlalchemy.orm import Session

from espalier.errors import Conflict
from espalier.states import JOB_OPEN, ArtifactKind
from scheduler.access import SYSTEM, Actor, audit
from scheduler.bytes.blobrows import touch
from scheduler.bytes.gc import GRACE
from scheduler.catalog import aliases, projects, quota, webhooks
from scheduler.catalog.registry import changed, label, locked, path_of
from scheduler.db import now
from scheduler.models import (
    Alias,
    Artifact,
    FormerName,
    Gate,
    Job,
    JobInput,
    Project,
    Version,
    VersionFile,
)

# --- Versions -----------------------------------------------------------------------------


def delete_version(session: Session, actor: Actor, version: Version) -> None:
    """Hide a version; garbage collection takes its files after the grace. Lineage stays.

    Raises Conflict while a name points at it, a gate measures on it, or a job that has not ended
    uses it.
    """
    locked(session, Artifact.id == version.artifact_id)
    session.refresh(version, ["deleted_at"])
    if version.deleted_at is not None:
        return
    why = why_kept(session, version)
    if why is not None:
        raise Conflict(why[0], hint=why[1])
    hide(session, actor, version)


def why_kept(session: Session, version: Version) -> tuple[str, str] | None:
    """Return why a version cannot be deleted now, and what to do first."""
    mine = select(Alias.kind, Alias.name).where(Alias.version_id == version.id).limit(1)
    for kind, name in session.execute(mine):
        first = "Commit something newer to it" if kind == "branch" else "Move or remove it"
        if kind == "tag":
            first = "Remove the tag"
        return f"{label(version)} is {name} ({kind}).", f"{first} first."
    gate = session.scalar(select(Gate).where(Gate.data == label(version)).limit(1))
    if gate is not None:
        at = f"{path_of(gate.artifact)}@{gate.alias}"
        return f"The gate of {at} measures on {label(version)}.", "Set the gate anew first."
    job = session.scalar(select(Job.id).where(_open_job_of(version)).limit(1))
    if job is not None:
        return f"{label(version)} is an input of job {job}.", "Wait for it to end."
    return None


def hide(session: Session, actor: Actor, version: Version, why: str = "") -> None:
    """Delete a version of a locked artifact that nothing keeps."""
    version.deleted_at = now(session)
    changed(version.artifact)
    session.flush()
    told = {**webhooks.told_of(version), "by": actor.name, "why": why}
    webhooks.announce(session, version.artifact, "version.deleted", told)
    data = {"commit": version.commit, **({"why": why} if why else {})}
    audit(session, actor, "version.delete", label(version), data)


def restore_version(session: Session, actor: Actor, version: Version) -> None:
    """Bring a deleted version back, files and all.

    Raises Conflict when the grace is over or its name holds another kind now, QuotaExceeded when
    its files have no room any more.
    """
    files = {file.sha256: file.size for file in version.files}
    quota.check(session, version.artifact.project, files)
    artifact = locked(session, Artifact.id == version.artifact_id)
    session.refresh(version, ["deleted_at"])
    if version.deleted_at is None:
        return
    if artifact.deleted_at is not None:
        hint = f"`espalier artifact restore {path_of(artifact)}` brings all of it back."
        raise Conflict(f"{path_of(artifact)} itself was deleted.", hint=hint)
    paths = session.scalars(select(VersionFile.path).where(VersionFile.version_id == version.id))
    if version.deleted_at < now(session) - GRACE:
        raise Conflict(f"{label(version)} was deleted more than {GRACE.days} days ago: it is gone.")
    if not _fits(artifact.kind, paths.all()):
        raise Conflict(
            f"{path_of(artifact)} is of kind {artifact.kind} now: {label(version)} is none."
        )
    touch(session, files)
    version.deleted_at = None
    changed(artifact)
    session.flush()
    audit(session, actor, "version.restore", label(version), {"commit": version.commit})


def _fits(kind: str, paths: Sequence[str]) -> bool:
    """Whether files may be a version of this kind: a name may be taken up for another one."""
    match kind:
        case ArtifactKind.ADAPTER:
            return "adapter_config.json" in paths
        case ArtifactKind.GGUF:
            return any(path.endswith(".gguf") for path in paths)
        case ArtifactKind.MODEL:
            return "adapter_config.json" not in paths
        case ArtifactKind.DATASET:
            return not any(path.endswith((".safetensors", ".gguf")) for path in paths)
        case _:
            return True


def deleted_versions(session: Session, artifact: Artifact) -> list[Version]:
    """Return the versions that can still be brought back, newest first."""
    mine = select(Version).where(
        Version.artifact_id == artifact.id, Version.deleted_at >= now(session) - GRACE
    )
    return list(session.scalars(mine.order_by(Version.number.desc())))


def _open_job_of(version: Version) -> ColumnElement[bool]:
    uses = JobInput.job_id == Job.id, JobInput.version_id == version.id
    return exists().where(*uses) & Job.state.in_(JOB_OPEN)


# --- Artifacts ----------------------------------------------------------------------------


def delete_artifact(session: Session, actor: Actor, artifact: Artifact) -> None:
    """Hide an artifact with everything in it; the name is free.

    Raises Forbidden for anybody but owners and admins, Conflict while a job that has not ended
    uses one of its versions, or another artifact's gate measures on one.
    """
    projects.require_manager(session, actor, artifact.project)
    locked(session, Artifact.id == artifact.id)
    if artifact.deleted_at is not None:
        return
    mine = select(Version.id).where(Version.artifact_id == artifact.id)
    uses = select(JobInput.job_id).where(JobInput.version_id.in_(mine))
    job = session.scalar(select(Job.id).where(Job.id.in_(uses), Job.state.in_(JOB_OPEN)).limit(1))
    if job is not None:
        raise Conflict(f"{path_of(artifact)} is an input of job {job}.", hint="Wait for it to end.")
    measured = Gate.data.startswith(f"{path_of(artifact)}@", autoescape=True)
    gate = session.scalar(select(Gate).where(measured, Gate.artifact_id != artifact.id).limit(1))
    if gate is not None:
        raise Conflict(
            f"The gate of {path_of(gate.artifact)}@{gate.alias} measures on {gate.data}.",
            hint="Set the gate anew first.",
        )
    artifact.deleted_at = now(session)
    changed(artifact)
    session.flush()
    webhooks.announce(session, artifact, "repo.deleted", {"by": actor.name})
    audit(session, actor, "artifact.delete", path_of(artifact))


def restore_artifact(session: Session, actor: Actor, artifact: Artifact) -> None:
    """Bring a deleted artifact back: versions, aliases, branches, tags and gates as they were.

    Raises Forbidden for anybody but owners and admins, Conflict when the grace is over,
    QuotaExceeded when its files have no room any more.
    """
    projects.require_manager(session, actor, artifact.project)
    there = Version.artifact_id == artifact.id, Version.deleted_at.is_(None)
    files = dict(
        session.execute(
            select(VersionFile.sha256, VersionFile.size).join(VersionFile.version).where(*there)
        ).all()
    )
    quota.check(session, artifact.project, files)
    locked(session, Artifact.id == artifact.id)
    if artifact.deleted_at is None:
        return
    if artifact.deleted_at < now(session) - GRACE:
        old = f"{path_of(artifact)} was deleted more than {GRACE.days} days ago"
        raise Conflict(f"{old}: it is gone.", hint="The name is free.")
    touch(session, files)
    artifact.deleted_at = None
    changed(artifact)
    session.flush()
    audit(session, actor, "artifact.restore", path_of(artifact))


def deleted_artifacts(session: Session, project: Project) -> list[Artifact]:
    """Return the project's artifacts that can still be brought back, last deleted first."""
    mine = select(Artifact).where(
        Artifact.project_id == project.id, Artifact.deleted_at >= now(session) - GRACE
    )
    return list(session.scalars(mine.order_by(Artifact.deleted_at.desc(), Artifact.id)))


def find_deleted(session: Session, project: Project, name: str) -> Artifact | None:
    """Return the artifact of this name if it was deleted and can still be brought back."""
    return next((one for one in deleted_artifacts(session, project) if one.name == name), None)


def take_up(session: Session, artifact: Artifact) -> None:
    """Begin anew under the name of a deleted artifact, which the caller has locked.

    Nothing old comes back unasked: its versions are deleted ones, since when it was deleted; its
    aliases, branches, tags, gates and former names are gone. Numbers go on.
    """
    since = artifact.deleted_at
    session.execute(
        update(Version)
        .where(Version.artifact_id == artifact.id, Version.deleted_at.is_(None))
        .values(deleted_at=since)
        .execution_options(synchronize_session="fetch")
    )
    for row in session.scalars(select(Alias).where(Alias.artifact_id == artifact.id)).all():
        aliases.remember(session, SYSTEM, row, row.version_id, None, "deleted")
        session.delete(row)
    session.execute(delete(Gate).where(Gate.artifact_id == artifact.id))
    session.execute(delete(FormerName).where(FormerName.artifact_id == artifact.id))
    artifact.deleted_at = None
    changed(artifact)
    session.flush()
    session.expire(artifact, ["aliases", "versions"])
