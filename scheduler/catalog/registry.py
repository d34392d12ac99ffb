"""Artifacts: named lines of immutable versions.

A version is its manifest (scheduler.catalog.manifests), whose sha1 is the commit. Every change here
counts the artifact's ``revision`` up: its head in the store is due then (scheduler.catalog.heads).
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
from espalier.refs import COMMIT, VERSION, ArtifactRef, check_name
from espalier.states import ArtifactKind
from scheduler.bytes.blobrows import Digests, touch
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import manifests, webhooks
from scheduler.catalog.manifests import History
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
#: What hub clients call a model; while nothing whole is in it, what comes decides which it is.
MODEL_KINDS = frozenset({ArtifactKind.MODEL, ArtifactKind.ADAPTER, ArtifactKind.GGUF})
#: The key of a version's meta that says, in a sentence, what loaders would miss in it.
INCOMPLETE = "incomplete"
#: Kinds of `Alias`: what people move, what commits move, and what stays.
ALIAS, BRANCH, TAG = "alias", "branch", "tag"

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
    """Return the version that ``ref`` names; without a selector, main's newest one.

    A selector is a number (``v3``), a commit's first digits, ``latest``, an alias, a branch or a
    tag. Raises NotFound with the nearest names, InvalidInput for a commit that is not unique.
    """
    artifact = find_artifact(session, ref.project, ref.name)
    version = version_of(session, artifact, ref.selector)
    if version is None:
        raise NotFound(f"There is no version {ref}.", hint=_versions_hint(session, artifact))
    return version


def _versions(artifact: Artifact) -> Select[Version]:
    return select(Version).where(Version.artifact_id == artifact.id, Version.deleted_at.is_(None))


def version_of(session: Session, artifact: Artifact, selector: str | None) -> Version | None:
    """Return the artifact's version that a reference's selector names, if there is one."""
    versions = _versions(artifact)
    if selector in (None, LATEST, MAIN):
        return head(session, artifact)
    number = VERSION.fullmatch(selector)
    if number:
        found = session.scalar(versions.where(Version.number == int(number[1])))
        if found is not None:
            return found
    if COMMIT.fullmatch(selector):
        return _by_commit(session, artifact, versions, selector)
    named = versions.join(Alias, Alias.version_id == Version.id)
    return session.scalar(named.where(Alias.artifact_id == artifact.id, Alias.name == selector))


def head(session: Session, artifact: Artifact, branch: str = MAIN) -> Version | None:
    """Return what a branch points at: its newest version that is there.

    A branch other than main has a row that says so, also before the first commit to it.
    """
    if branch == MAIN:
        on_main = _versions(artifact).where(Version.branch == MAIN)
        return session.scalar(on_main.order_by(Version.number.desc()).limit(1))
    named = _versions(artifact).join(Alias, Alias.version_id == Version.id)
    mine = Alias.artifact_id == artifact.id, Alias.name == branch, Alias.kind == BRANCH
    return session.scalar(named.where(*mine))


def _by_commit(
    session: Session, artifact: Artifact, versions: Select[Version], digits: str
) -> Version | None:
    begins = Version.commit.startswith(digits, autoescape=True)
    found = session.scalars(versions.where(begins).limit(2)).all()
    if len(found) > 1:
        path = path_of(artifact)
        raise InvalidInput(f"{path}@{digits}: several commits begin so; give more digits.")
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
    history: History | None = None,
) -> Version:
    """Make the next version of ``project/name`` of blobs that are all there; return it.

    Published again by the same (attempt, role), or with the same files, meta and parents (and
    job, where one made it), it is the version that exists. A commit brings its ``history``, whose
    ``previous`` the caller has compared with the branch's head under the artifact's lock. Raises
    InvalidInput for unsafe, clashing or absent files, Conflict when the name belongs to another
    kind.
    """
    check_name(name)
    if attempt_id is not None:
        again = session.scalar(
            select(Version).where(Version.attempt_id == attempt_id, Version.role == role)
        )
        if again is not None:
            return again
    there = touch(session, (file.sha256 for file in files))
    manifest = compose(there, project, name, kind, files, meta, parents, job, history)
    artifact = artifact_for(session, project, name, kind)
    commit = manifests.commit(manifest)
    version = session.scalar(
        select(Version).where(Version.artifact_id == artifact.id, Version.commit == commit)
    )
    if version is not None:
        _restore(version, files)
        changed(artifact)
        return version
    branch = history.branch if history else MAIN
    before = head(session, artifact, branch)
    if before is not None and _is_same(before, files, meta, parents, job, history):
        return before
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
        branch=branch,
        previous_id=before.id if before else None,
        message=history.message if history else None,
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
    webhooks.announce(session, artifact, "version.published", webhooks.told_of(version))
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
    history: History | None = None,
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
        history=history,
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


def _is_same(
    before: Version,
    files: Sequence[FileEntry],
    meta: Mapping[str, Any],
    parents: Sequence[Parent],
    job: Job | None,
    history: History | None,
) -> bool:
    """Say whether somebody pushes what a commit, whose manifest is another, has made the head."""
    if history or job or parents or before.message is None or before.meta != meta:
        return False
    wanted = {file.path: file.sha256 for file in files}
    return {file.path: file.sha256 for file in before.files} == wanted


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


def artifact_for(session: Session, project: Project, name: str, kind: ArtifactKind) -> Artifact:
    """Return the artifact, made if absent, locked: two publishers number their versions in turn.

    The name of a deleted one begins anew. Raises Conflict when it belongs to another kind.
    """
    mine = (Artifact.project_id == project.id) & (Artifact.name == name)
    if session.scalar(select(Artifact.id).where(mine)) is None:
        artifact = Artifact(project_id=project.id, name=name, kind=kind.value)
        artifact.created_at = artifact.updated_at = now(session)
        with suppress(IntegrityError), session.begin_nested():  # somebody else may be quicker
            session.add(artifact)
    artifact = locked(session, mine)
    if artifact.deleted_at is not None:
        from scheduler.catalog import retiring  # which needs this module itself

        retiring.take_up(session, artifact)
        artifact.kind = kind.value
    if not may_be(session, artifact, kind):
        holds = f"{path_of(artifact)} holds versions of kind {artifact.kind}; this is a {kind}."
        raise Conflict(holds, hint="Publish it under another name.")
    artifact.kind = kind.value
    return artifact


def may_be(session: Session, artifact: Artifact, kind: ArtifactKind) -> bool:
    """Say whether the artifact is of this kind, or a model's name with nothing whole in it yet."""
    if artifact.kind == kind:
        return True
    undecided = artifact.kind == ArtifactKind.MODEL and kind in MODEL_KINDS
    return undecided and not has_whole(session, artifact)


def has_whole(session: Session, artifact: Artifact) -> bool:
    """Say whether one of the artifact's versions has all that loaders need."""
    metas = session.scalars(
        select(Version.meta).where(Version.artifact_id == artifact.id, Version.deleted_at.is_(None))
    )
    return any(INCOMPLETE not in meta for meta in metas)


def locked(session: Session, which: ColumnElement[bool]) -> Artifact:
    query = select(Artifact).where(which).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()
