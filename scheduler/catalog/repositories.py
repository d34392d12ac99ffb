"""Repositories as hub clients make and move them: artifacts with a first commit, and a name."""

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from espalier.errors import Conflict, Forbidden, InvalidInput, NotFound
from espalier.messages import FileEntry
from espalier.refs import check_name, check_project
from espalier.states import ArtifactKind
from scheduler import access
from scheduler.access import Actor
from scheduler.bytes.blobrows import Digests
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import projects, quota, registry, webhooks
from scheduler.catalog.manifests import History
from scheduler.catalog.registry import INCOMPLETE, MAIN, MODEL_KINDS
from scheduler.contents import judging
from scheduler.db import Database, now
from scheduler.models import Artifact, FormerName, Project, Version, VersionFile

_FIRST_MESSAGE = "initial commit"
#: The file that a new repository begins with, as on the Hub: what git would keep by pointer.
_ATTRIBUTES = ".gitattributes"
_POINTERS = "".join(
    f"*.{end} filter=lfs diff=lfs merge=lfs -text\n"
    for end in ("safetensors", "gguf", "npz", "parquet")
).encode()


class Exists(Conflict):
    """The repository is there already, and of the same type."""

    code, title = "exists", "The repository exists"


def create(
    database: Database, blobs: Blobs, actor: Actor, project: str, name: str, kind: ArtifactKind
) -> str:
    """Make a repository with a first commit; return that version's id.

    ``kind`` is model or dataset. An admin makes the project with it, where there is none. Raises
    Exists, Forbidden for a project the actor is not in (whether there is one or not), InvalidInput
    when the name belongs to the other type.
    """
    check_name(name)
    missing = " or ".join(judging.lacking(kind, [_ATTRIBUTES]))
    meta = {INCOMPLETE: f"This {kind.value} is not complete: it has no {missing}."}
    with database.transaction() as session:
        _project(session, actor, project)
        check_free(session, project, name, kind)
    file = FileEntry(path=_ATTRIBUTES, sha256=blobs.keep(database, _POINTERS), size=len(_POINTERS))
    history = History(MAIN, None, _FIRST_MESSAGE)

    def compose(session: Session, there: dict[str, Digests]) -> bytes:
        home = _project(session, actor, project)
        return registry.compose(there, home, name, kind, [file], meta, [], history=history)

    registry.prepare(database, blobs, [file], compose)
    with database.transaction() as session:
        home = _project(session, actor, project)
        quota.check(session, home, {file.sha256: file.size})
        artifact = registry.artifact_for(session, home, name, kind)
        if registry.head(session, artifact) is not None:
            raise Exists(f"{project}/{name} exists already.")
        version = registry.publish(
            session,
            blobs,
            project=home,
            name=name,
            kind=kind,
            files=[file],
            meta=meta,
            parents=[],
            created_by=actor.user_id,
            history=history,
        )
        access.audit(session, actor, "repo.create", registry.path_of(artifact))
        return version.id


def _project(session: Session, actor: Actor, name: str) -> Project:
    try:
        return access.project_for(session, actor, name, create=actor.is_admin)
    except NotFound as error:
        raise Forbidden(error.detail, hint=f"{error.hint} An admin makes projects.") from error


def check_free(session: Session, project: str, name: str, kind: ArtifactKind) -> None:
    """Raise Exists for a repository of this type by this name, InvalidInput for another type."""
    there = session.scalar(
        select(Artifact)
        .join(Artifact.project)
        .where(Project.name == project, Artifact.name == name, Artifact.deleted_at.is_(None))
    )
    if there is None:
        return
    if there.kind == kind or (kind == ArtifactKind.MODEL and there.kind in MODEL_KINDS):
        raise Exists(f"{project}/{name} exists already.")
    raise InvalidInput(
        f"{project}/{name} is a {there.kind}: a {kind.value} needs another name.",
        errors=[{"loc": ["name"], "msg": f"taken by a {there.kind}"}],
    )


def move(session: Session, actor: Actor, artifact: Artifact, project: str, name: str) -> None:
    """Give a repository another name, in the same project or in another one.

    Who asks for it by the old name finds it, until another gets that name. Jobs, versions and
    aliases are untouched. Raises Forbidden unless the actor owns both projects, Conflict when the
    name is taken.
    """
    check_project(project)
    check_name(name)
    target = access.project_for(session, actor, project)
    projects.require_manager(session, actor, artifact.project)
    projects.require_manager(session, actor, target)
    artifact = registry.locked(session, Artifact.id == artifact.id)
    old_project, old_name, before = artifact.project, artifact.name, registry.path_of(artifact)
    if (old_project.id, old_name) == (target.id, name):
        return
    folded = func.lower(Artifact.name) == name.lower()
    taken = session.scalar(
        select(Artifact).where(Artifact.project_id == target.id, folded, Artifact.id != artifact.id)
    )
    if taken is not None:
        gone = " (deleted, and kept for a while)" if taken.deleted_at else ""
        raise Conflict(f"{target.name}/{taken.name} exists already{gone}.")
    quota.check(session, target, _sizes(session, artifact))
    session.execute(
        delete(FormerName).where(FormerName.project_id == target.id, FormerName.name == name)
    )
    moment = now(session)
    artifact.project, artifact.name, artifact.updated_at = target, name, moment
    session.merge(
        FormerName(
            project_id=old_project.id, name=old_name, artifact_id=artifact.id, created_at=moment
        )
    )
    registry.changed(artifact)
    session.flush()
    webhooks.announce(session, artifact, "repo.moved", {"from": before})
    access.audit(session, actor, "repo.move", before, {"to": registry.path_of(artifact)})


def _sizes(session: Session, artifact: Artifact) -> dict[str, int]:
    rows = session.execute(
        select(VersionFile.sha256, VersionFile.size)
        .join(VersionFile.version)
        .where(Version.artifact_id == artifact.id, Version.deleted_at.is_(None))
    )
    return dict(rows.all())
