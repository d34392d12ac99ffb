"""What the store holds and for whom: projects, kinds, the largest artifacts, uploads, caches.

Bytes are those of blobs, each counted once in what is asked about: two versions, or two artifacts
of a project, that share a file share its bytes.
"""

from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from scheduler.access import Actor, visible_projects
from scheduler.models import (
    Artifact,
    Blob,
    Project,
    Upload,
    UploadPart,
    User,
    Version,
    VersionFile,
    Worker,
    WorkerBlob,
)
from scheduler.queries import Document, stamp

#: Artifacts and uploads that are listed.
LARGEST, UPLOADS = 10, 20


def totals(session: Session) -> Document:
    """Return what the whole store holds, and the part of it that versions refer to."""
    blobs, size = session.execute(select(func.count(), func.coalesce(func.sum(Blob.size), 0))).one()
    referred = select(VersionFile.sha256).distinct().subquery()
    used = session.scalar(
        select(func.coalesce(func.sum(Blob.size), 0)).where(Blob.sha256.in_(select(referred)))
    )
    damaged = session.scalar(select(func.count()).where(Blob.damaged_at.is_not(None)))
    return {"blobs": blobs, "bytes": size, "in_versions": used or 0, "damaged": damaged or 0}


def projects(session: Session, actor: Actor) -> list[Document]:
    """Return the projects the actor sees, largest first: bytes in use, deleted ones, the quota."""
    rows = session.scalars(select(Project).where(visible_projects(actor)).order_by(Project.name))
    used = _sums(session, actor, Artifact.project_id, _there())
    ever = _sums(session, actor, Artifact.project_id)
    counts = session.execute(
        select(Artifact.project_id, func.count())
        .join(Artifact.project)
        .where(visible_projects(actor), Artifact.deleted_at.is_(None))
        .group_by(Artifact.project_id)
    )
    artifacts = dict(counts.all())
    found = [
        {
            "name": project.name,
            "artifacts": artifacts.get(project.id, 0),
            "bytes": used.get(project.id, 0),
            "deleted": ever.get(project.id, 0) - used.get(project.id, 0),
            "quota": project.quota_bytes,
            "ttl_days": project.ttl_days,
        }
        for project in rows
    ]
    return sorted(found, key=lambda project: -project["bytes"])


def kinds(session: Session, actor: Actor) -> list[tuple[str, int]]:
    """Return (kind, bytes), the largest first."""
    found = _sums(session, actor, Artifact.kind, _there())
    return sorted(found.items(), key=lambda item: -item[1])


def largest(session: Session, actor: Actor) -> list[Document]:
    """Return the LARGEST artifacts by the bytes of all their versions."""
    per = _blobs(actor, Artifact.id, _there()).subquery()
    rows = session.execute(
        select(Project.name, Artifact.name, Artifact.kind, func.sum(per.c.size).label("bytes"))
        .select_from(per)
        .join(Artifact, Artifact.id == per.c.key)
        .join(Artifact.project)
        .group_by(Artifact.id, Project.name, Artifact.name, Artifact.kind)
        .order_by(func.sum(per.c.size).desc(), Artifact.name)
        .limit(LARGEST)
    )
    return [
        {"path": f"{project}/{name}", "kind": kind, "bytes": int(size)}
        for project, name, kind, size in rows
    ]


def uploads(session: Session, actor: Actor) -> list[Document]:
    """Return the newest uploads under way: the actor's own, an admin sees all."""
    received = func.coalesce(func.sum(UploadPart.size), 0)
    query = (
        select(Upload, received)
        .outerjoin(UploadPart, UploadPart.upload_id == Upload.id)
        .group_by(Upload.id)
        .order_by(Upload.touched_at.desc())
        .limit(UPLOADS)
    )
    if not actor.is_admin:
        query = query.where(Upload.owner == f"user:{actor.user_id}")
    rows = [
        (row, size) for row, size in session.execute(query) if not row.driver_state.get("complete")
    ]
    people = dict(session.execute(select(User.id, User.name)).all()) if rows else {}
    machines = dict(session.execute(select(Worker.id, Worker.name)).all()) if rows else {}
    return [
        {
            "owner": _owner(upload.owner, people, machines),
            "sha256": upload.sha256,
            "size": upload.size,
            "received": int(size),
            "touched_at": stamp(upload.touched_at),
        }
        for upload, size in rows
    ]


def caches(session: Session) -> list[Document]:
    """Return what each worker holds, as it last told."""
    rows = session.execute(
        select(Worker, func.count(WorkerBlob.sha256), func.coalesce(func.sum(WorkerBlob.size), 0))
        .outerjoin(WorkerBlob, WorkerBlob.worker_id == Worker.id)
        .where(Worker.revoked_at.is_(None))
        .group_by(Worker.id)
        .order_by(Worker.name)
    )
    return [
        {
            "name": worker.name,
            "blobs": blobs,
            "bytes": int(size),
            "disk_free": worker.machine.get("disk_free"),
        }
        for worker, blobs, size in rows
    ]


def _there() -> ColumnElement[bool]:
    return Version.deleted_at.is_(None) & Artifact.deleted_at.is_(None)


def _blobs(actor: Actor, key: Any, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Return the query of (key, sha256, size), each once."""
    return (
        select(key.label("key"), VersionFile.sha256, VersionFile.size)
        .join(VersionFile.version)
        .join(Version.artifact)
        .join(Artifact.project)
        .where(visible_projects(actor), *conditions)
        .distinct()
    )


def _sums(
    session: Session, actor: Actor, key: Any, *conditions: ColumnElement[bool]
) -> dict[str, int]:
    per = _blobs(actor, key, *conditions).subquery()
    rows = session.execute(select(per.c.key, func.sum(per.c.size)).group_by(per.c.key))
    return {name: int(size) for name, size in rows}


def _owner(owner: str, people: dict[str, str], machines: dict[str, str]) -> str:
    kind, _, key = owner.partition(":")
    return (machines if kind == "worker" else people).get(key, kind)
