"""One version, as its page tells it: facts, files folder by folder, history, names that moved.

Nothing here loads all files of a version: a tree of ten thousand is looked at a folder at a time.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from espalier.refs import COMMIT, ArtifactRef
from scheduler.access import Actor, visible_projects
from scheduler.catalog.registry import LATEST, MAIN
from scheduler.models import (
    Alias,
    AliasMove,
    Artifact,
    Job,
    Project,
    User,
    Version,
    VersionFile,
)
from scheduler.queries import Document, stamp
from scheduler.queries.artifacts import version_ref

#: Versions, moves of aliases, and entries of a folder that one view holds.
VERSIONS, MOVES, ENTRIES = 50, 30, 200
#: Files whose names say how a version is used.
_TELLING = 60


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a folder, or a folder with the ``files`` and bytes below it."""

    name: str
    path: str
    size: int
    sha256: str | None
    files: int


def facts(session: Session, actor: Actor, version: Version) -> Document:
    """Return what the head of a version's page says; the files are counted, not listed."""
    artifact = version.artifact
    files = session.scalar(select(func.count()).where(VersionFile.version_id == version.id))
    previous = session.get(Version, version.previous_id) if version.previous_id else None
    return {
        "ref": version_ref(version),
        "project": artifact.project.name,
        "name": artifact.name,
        "kind": artifact.kind,
        "commit": version.commit,
        "number": version.number,
        "branch": version.branch,
        "message": version.message or "",
        "size": version.size,
        "files": files or 0,
        "meta": version.meta,
        "names": names_of(session, version),
        "previous": previous.number if previous and previous.deleted_at is None else None,
        "created_at": stamp(version.created_at),
        "created_by": session.scalar(select(User.name).where(User.id == version.created_by)),
        "job": _visible_job(session, actor, version.job_id),
        "deleted_at": stamp(version.deleted_at or artifact.deleted_at),
    }


def names_of(session: Session, version: Version) -> list[tuple[str, str]]:
    """Return (name, kind) of the aliases, branches and tags that point at the version."""
    rows = session.execute(
        select(Alias.name, Alias.kind)
        .where(Alias.version_id == version.id)
        .order_by(Alias.kind, Alias.name)
    )
    return [(name, kind) for name, kind in rows]


def names(session: Session, artifact: Artifact) -> list[Document]:
    """Return the artifact's aliases, branches and tags with the version each points at."""
    rows = session.execute(
        select(Alias, Version.number, Version.commit)
        .join(Alias.version)
        .where(Alias.artifact_id == artifact.id)
        .order_by(Alias.kind, Alias.name)
    )
    return [
        {
            "name": alias.name,
            "kind": alias.kind,
            "number": number,
            "commit": commit,
            "updated_at": stamp(alias.updated_at),
        }
        for alias, number, commit in rows
    ]


# --- Files --------------------------------------------------------------------------------


def telling_files(session: Session, version: Version) -> dict[str, tuple[str, int]]:
    """Return path → (sha256, bytes) of the files that say how a version is used.

    Those of the first folder, and GGUF files wherever they are; a few dozen at most.
    """
    top = VersionFile.path.not_like("%/%") | VersionFile.path.endswith(".gguf")
    rows = session.execute(
        select(VersionFile.path, VersionFile.sha256, VersionFile.size)
        .where(VersionFile.version_id == version.id, top)
        .order_by(VersionFile.path)
        .limit(_TELLING)
    )
    found = {path: (sha256, size) for path, sha256, size in rows}
    wanted = [name for name in ("README.md", "config.json") if name not in found]
    for name in wanted:  # behind the first few dozen
        if (file := file_of(session, version, name)) is not None:
            found[name] = file.sha256, file.size
    return found


def file_of(session: Session, version: Version, path: str) -> VersionFile | None:
    return session.get(VersionFile, (version.id, path))


def folder(session: Session, version: Version, below: str = "") -> list[Entry]:
    """Return the entries of a folder ("" is the first), folders first; empty if there is none."""
    start = f"{below}/" if below else ""
    query = select(VersionFile.path, VersionFile.size, VersionFile.sha256).where(
        VersionFile.version_id == version.id
    )
    if start:
        query = query.where(VersionFile.path.startswith(start, autoescape=True))
    files: list[Entry] = []
    folders: dict[str, list[int]] = {}
    for path, size, sha256 in session.execute(query.order_by(VersionFile.path)):
        if not path.startswith(start):  # LIKE knows no case in SQLite
            continue
        name, slash, _ = path[len(start) :].partition("/")
        if slash:
            folders.setdefault(name, []).append(size)
        else:
            files.append(Entry(name, path, size, sha256, 1))
    above = [
        Entry(name, f"{start}{name}", sum(sizes), None, len(sizes))
        for name, sizes in sorted(folders.items())
    ]
    return above + files


# --- History ------------------------------------------------------------------------------


def history(
    session: Session, actor: Actor, artifact: Artifact, before: int | None = None
) -> list[Document]:
    """Return VERSIONS of the artifact, newest first, below number ``before``.

    Deleted ones are in it while they can be brought back, and say so.
    """
    query = (
        select(Version, User.name)
        .outerjoin(User, User.id == Version.created_by)
        .where(Version.artifact_id == artifact.id)
        .order_by(Version.number.desc())
        .limit(VERSIONS)
    )
    if before is not None:
        query = query.where(Version.number < before)
    rows = session.execute(query).all()
    ids = [version.id for version, _ in rows]
    pointing: dict[str, list[tuple[str, str]]] = {}
    for version_id, name, kind in session.execute(
        select(Alias.version_id, Alias.name, Alias.kind)
        .where(Alias.version_id.in_(ids))
        .order_by(Alias.name)
    ):
        pointing.setdefault(version_id, []).append((name, kind))
    seen = _visible_jobs(session, actor, [v.job_id for v, _ in rows if v.job_id])
    return [
        {
            "number": version.number,
            "commit": version.commit,
            "branch": version.branch,
            "message": version.message or "",
            "size": version.size,
            "names": pointing.get(version.id, []),
            "created_at": stamp(version.created_at),
            "created_by": author,
            "job": seen.get(version.job_id or ""),
            "deleted_at": stamp(version.deleted_at),
        }
        for version, author in rows
    ]


def moves(session: Session, artifact: Artifact, alias: str | None = None) -> list[Document]:
    """Return the newest MOVES of the artifact's aliases, branches and tags, newest first."""
    before, after = aliased(Version), aliased(Version)
    query = (
        select(AliasMove, before.number, after.number)
        .outerjoin(before, before.id == AliasMove.from_id)
        .outerjoin(after, after.id == AliasMove.to_id)
        .where(AliasMove.artifact_id == artifact.id)
        .order_by(AliasMove.id.desc())
        .limit(MOVES)
    )
    if alias is not None:
        query = query.where(AliasMove.alias == alias)
    return [
        {
            "alias": move.alias,
            "kind": move.kind,
            "before": was,
            "after": now,
            "actor": move.actor,
            "why": move.why,
            "detail": move.detail,
            "created_at": stamp(move.created_at),
        }
        for move, was, now in session.execute(query)
    ]


def deleted_version(session: Session, actor: Actor, ref: ArtifactRef) -> Document | None:
    """Return the facts of what a reference named before it was deleted.

    ``what`` is "artifact" or "version"; None also for what the actor may not see.
    """
    found = deleted_row(session, actor, ref)
    if found is None:
        return None
    artifact, version = found
    what = "artifact" if artifact.deleted_at else "version"
    return {**facts(session, actor, version), "what": what}


def deleted_row(
    session: Session, actor: Actor, ref: ArtifactRef
) -> tuple[Artifact, Version] | None:
    """Return the artifact and the version that a reference named before one was deleted."""
    found = session.scalar(
        select(Artifact)
        .join(Artifact.project)
        .where(Project.name == ref.project, Artifact.name == ref.name, visible_projects(actor))
    )
    if found is None:
        return None
    query = select(Version).where(Version.artifact_id == found.id)
    if ref.version is not None:
        query = query.where(Version.number == ref.version)
    elif ref.selector and COMMIT.fullmatch(ref.selector):
        query = query.where(Version.commit.startswith(ref.selector, autoescape=True))
    elif found.deleted_at is None and ref.selector not in (None, MAIN, LATEST):
        return None
    version = session.scalar(query.order_by(Version.number.desc()).limit(1))
    if version is None or (version.deleted_at is None and found.deleted_at is None):
        return None
    return found, version


def _visible_jobs(session: Session, actor: Actor, ids: Collection[str]) -> dict[str, Document]:
    rows = session.execute(
        select(Job.id, Job.kind, Job.name)
        .join(Job.project)
        .where(Job.id.in_(ids), visible_projects(actor))
    )
    return {key: {"id": key, "kind": kind, "name": name} for key, kind, name in rows}


def _visible_job(session: Session, actor: Actor, job_id: str | None) -> Document | None:
    return _visible_jobs(session, actor, [job_id]).get(job_id) if job_id else None
