"""Artifacts: named lines of immutable versions.

A version is its manifest (scheduler.manifests), whose sha1 is the commit. Every change here counts
the artifact's ``revision`` up: its head in the store is due then (scheduler.heads).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from espalier.errors import Conflict, InvalidInput, NotFound
from espalier.messages import FileEntry
from espalier.refs import COMMIT, ArtifactRef, check_name
from espalier.states import ArtifactKind
from scheduler import manifests
from scheduler.blobrows import Digests, touch
from scheduler.blobs import Blobs
from scheduler.db import Database, now
from scheduler.models import (
    Alias,
    Artifact,
    Blob,
    FormerName,
    Job,
    Lineage,
    Project,
    Version,
    VersionFile,
)

#: A selector that always means the newest version; no alias may be called so.
LATEST = "latest"
#: The branch that every artifact has; jobs and `espalier push` publish to it.
MAIN = "main"

Parent = tuple[str, Version]  # the role it had in the making, and the version


# --- Finding ------------------------------------------------------------------------------


def find_artifact(session: Session, project: str, name: str) -> Artifact:
    """Return the artifact ``project/name``; raise NotFound with the nearest names."""
    within = select(Artifact).join(Project, Artifact.project_id == Project.id)
    artifact = session.scalar(
        within.where(Project.name == project, Artifact.name == name, Artifact.deleted_at.is_(None))
    ) or _moved(session, project, name)
    if artifact is None:
        hint = _nearest(session, project, name)
        raise NotFound(f"There is no artifact {project}/{name}.", hint=hint)
    return artifact


def _moved(session: Session, project: str, name: str) -> Artifact | None:
    """Return the artifact that had this name before it was moved."""
    return session.scalar(
        select(Artifact)
        .join(FormerName, FormerName.artifact_id == Artifact.id)
        .join(Project, FormerName.project_id == Project.id)
        .where(Project.name == project, FormerName.name == name, Artifact.deleted_at.is_(None))
    )


def resolve(session: Session, ref: ArtifactRef) -> Version:
    """Return the version that ``ref`` names; without a selector, the newest one.

    A selector is a number (``v3``), a commit's first digits, ``latest`` or an alias. Raises
    NotFound with the nearest names, InvalidInput for a commit that is not unique.
    """
    artifact = find_artifact(session, ref.project, ref.name)
    version = _select(session, artifact, ref)
    if version is None:
        raise NotFound(f"There is no version {ref}.", hint=_versions_hint(session, artifact))
    return version


def _versions(artifact: Artifact) -> Select[Version]:
    return select(Version).where(Version.artifact_id == artifact.id, Version.deleted_at.is_(None))


def _select(session: Session, artifact: Artifact, ref: ArtifactRef) -> Version | None:
    versions = _versions(artifact)
    if ref.selector in (None, LATEST, MAIN):
        return head(session, artifact)
    if ref.version is not None:
        found = session.scalar(versions.where(Version.number == ref.version))
        if found is not None:
            return found
    if COMMIT.fullmatch(ref.selector or ""):
        return _by_commit(session, versions, ref)
    named = versions.join(Alias, Alias.version_id == Version.id)
    return session.scalar(named.where(Alias.artifact_id == artifact.id, Alias.name == ref.selector))


def head(session: Session, artifact: Artifact, branch: str = MAIN) -> Version | None:
    """Return what a branch points at: its newest version that is there."""
    on_branch = _versions(artifact).where(Version.branch == branch)
    return session.scalar(on_branch.order_by(Version.number.desc()).limit(1))


def _by_commit(session: Session, versions: Select[Version], ref: ArtifactRef) -> Version | None:
    begins = Version.commit.startswith(ref.selector or "", autoescape=True)
    found = session.scalars(versions.where(begins).limit(2)).all()
    if len(found) > 1:
        raise InvalidInput(f"{ref}: several commits begin with these digits; give more of them.")
    return found[0] if found else None


def _nearest(session: Session, project: str, name: str) -> str | None:
    names = session.scalars(
        select(Artifact.name)
        .join(Project, Artifact.project_id == Project.id)
        .where(Project.name == project)
        .order_by(Artifact.updated_at.desc())
        .limit(2000)
    ).all()
    near = get_close_matches(name, names, 3, 0.4)
    if names and not near:
        return f"{project} has {', '.join(names[:3])}{', …' if len(names) > 3 else ''}."
    return did_you_mean([f"{project}/{name}" for name in near])


def _versions_hint(session: Session, artifact: Artifact) -> str:
    aliases = [alias.name for alias in artifact.aliases]
    newest = session.scalars(_versions(artifact).order_by(Version.number.desc()).limit(3)).all()
    there = [f"v{version.number}" for version in newest] + aliases[:5]
    if not there:
        return "All of its versions were deleted: publish one."
    return f"It has {', '.join(there)}{', …' if artifact.latest > len(newest) else ''}."


def did_you_mean(names: Sequence[str]) -> str | None:
    return f"Did you mean {' or '.join(names)}?" if names else None


def label(version: Version) -> str:
    """Return ``project/name@vN``."""
    return f"{path_of(version.artifact)}@v{version.number}"


def path_of(artifact: Artifact) -> str:
    return f"{artifact.project.name}/{artifact.name}"


# --- Publishing ---------------------------------------------------------------------------


def publish(
    session: Session,
    blobs: Blobs,
    *,
    project: Project,
    name: str,
    kind: ArtifactKind,
    files: Sequence[FileEntry],
    meta: dict[str, Any],
    parents: Sequence[Parent],
    created_by: str | None,
    job: Job | None = None,
    attempt_id: str | None = None,
    role: str | None = None,
) -> Version:
    """Make the next version of ``project/name`` of blobs that are all there; return it.

    Published again by the same (attempt, role), or with the same files, meta and parents (and
    job, where one made it), it is the version that exists. Raises InvalidInput for unsafe,
    clashing or absent files, Conflict when the name belongs to another kind.
    """
    check_name(name)
    if attempt_id is not None:
        again = session.scalar(
            select(Version).where(Version.attempt_id == attempt_id, Version.role == role)
        )
        if again is not None:
            return again
    there = touch(session, (file.sha256 for file in files))
    manifest = compose(there, project, name, kind, files, meta, parents, job)
    artifact = _artifact_for(session, project, name, kind)
    commit = manifests.commit(manifest)
    version = session.scalar(
        select(Version).where(Version.artifact_id == artifact.id, Version.commit == commit)
    )
    if version is not None:
        _restore(version, files)
        changed(artifact)
        return version
    moment = now(session)
    artifact.latest += 1
    artifact.updated_at = moment
    changed(artifact)
    version = Version(
        artifact=artifact,
        number=artifact.latest,
        commit=commit,
        manifest=blobs.put_bytes(session, manifest),
        size=sum(file.size for file in files),
        meta=meta,
        role=role,
        job=job,
        attempt_id=attempt_id,
        created_by=created_by,
        created_at=moment,
        files=_rows(files),
    )
    session.add(version)
    session.flush()
    _link(session, version, parents)
    return version


def prepare(
    database: Database,
    blobs: Blobs,
    files: Sequence[FileEntry],
    compose: Callable[[Session, dict[str, Digests]], bytes],
) -> None:
    """Do what takes the store's time before the transaction that publishes: no lock is held here.

    The store is asked whether it has all the files, and keeps the manifest that ``compose``
    returns, as `compose` below makes it. Raises InvalidInput for files that are not there.
    """
    with database.reading() as session:
        rows = session.scalars(select(Blob).where(Blob.sha256.in_({f.sha256 for f in files})))
        there = {
            row.sha256: Digests(row.sha256, row.git_oid, row.size)
            for row in rows
            if row.damaged_at is None
        }
        manifest = compose(session, there)
    for name in blobs.verify_there(database, {name: row.size for name, row in there.items()}):
        del there[name]
    _check_files(there, files)
    blobs.keep(database, manifest)


def compose(
    there: Mapping[str, Digests],
    project: Project,
    name: str,
    kind: ArtifactKind,
    files: Sequence[FileEntry],
    meta: Mapping[str, Any],
    parents: Sequence[Parent],
    job: Job | None = None,
) -> bytes:
    """Return the manifest of a version of these files, which are all ``there``.

    Raises InvalidInput for unsafe, clashing or absent ones.
    """
    _check_files(there, files)
    return manifests.build(
        f"{project.name}/{name}",
        kind,
        files={file.path: (file, there[file.sha256].git_oid) for file in files},
        parents=[(role, label(parent), parent.commit) for role, parent in parents],
        meta=meta,
        job=job.id if job else None,
    )


def _rows(files: Iterable[FileEntry]) -> list[VersionFile]:
    return [VersionFile(path=f.path, sha256=f.sha256, size=f.size) for f in files]


def _link(session: Session, child: Version, parents: Iterable[Parent]) -> None:
    for role, parent_id in sorted({(role, parent.id) for role, parent in parents}):
        session.add(Lineage(parent_id=parent_id, child_id=child.id, role=role))
    session.flush()


def _restore(version: Version, files: Iterable[FileEntry]) -> None:
    """Bring a deleted version back; collection may have taken its list of files."""
    version.deleted_at = None
    if not version.files:
        version.files = _rows(files)


def _check_files(there: Mapping[str, Digests], files: Sequence[FileEntry]) -> None:
    faults = list(manifests.clashes([file.path for file in files]))
    for file in files:
        blob = there.get(file.sha256)
        if blob is None:
            faults.append((file.path, "its blob was not uploaded"))
        elif blob.size != file.size:
            faults.append((file.path, f"its blob has {blob.size} bytes, not {file.size}"))
    if faults:
        path, problem = faults[0]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InvalidInput(
            f"{path}: {problem}{more}." if path else f"{problem}.",
            errors=[{"loc": ["files", path], "msg": problem} for path, problem in faults[:20]],
        )


def changed(artifact: Artifact) -> None:
    """Count a change of the artifact's versions or aliases."""
    artifact.revision = Artifact.revision + 1  # in SQL: the row may not be locked


def _artifact_for(session: Session, project: Project, name: str, kind: ArtifactKind) -> Artifact:
    """Return the artifact, made if absent, locked: two publishers number their versions in turn."""
    mine = (Artifact.project_id == project.id) & (Artifact.name == name)
    if session.scalar(select(Artifact.id).where(mine)) is None:
        artifact = Artifact(project_id=project.id, name=name, kind=kind.value)
        artifact.created_at = artifact.updated_at = now(session)
        with suppress(IntegrityError), session.begin_nested():  # somebody else may be quicker
            session.add(artifact)
    artifact = locked(session, mine)
    if artifact.kind != kind:
        holds = f"{path_of(artifact)} holds versions of kind {artifact.kind}; this is a {kind}."
        raise Conflict(holds, hint="Publish it under another name.")
    return artifact


def locked(session: Session, which: ColumnElement[bool]) -> Artifact:
    query = select(Artifact).where(which).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()
