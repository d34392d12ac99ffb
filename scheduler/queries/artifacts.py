"""Artifacts and their versions as documents: files, aliases, lineage."""

from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches

from sqlalchemy import and_, select
from sqlalchemy.orm import Session, aliased, contains_eager

from espalier.errors import NotFound
from scheduler.access import Actor, visible_projects
from scheduler.catalog.registry import MAIN
from scheduler.models import Alias, Artifact, FormerName, Job, Lineage, Project, User, Version
from scheduler.queries import Document, stamp
from scheduler.queries.newest import has_main, main_head

#: Artifacts an answer holds at most.
MAX_ARTIFACTS = 1000


def version_ref(version: Version) -> str:
    """Return ``project/name@vN``."""
    artifact = version.artifact
    return f"{artifact.project.name}/{artifact.name}@v{version.number}"


def file_documents(version: Version) -> list[Document]:
    return [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in version.files]


def find_artifact(session: Session, actor: Actor, project: str, name: str) -> Artifact:
    """Return the artifact, also by a name that it had before it was moved.

    Raises NotFound, for foreign and for deleted ones too, with the nearest names as hint.
    """
    there = (
        select(Artifact)
        .join(Artifact.project)
        .options(contains_eager(Artifact.project))
        .where(visible_projects(actor), Artifact.deleted_at.is_(None))
    )
    artifact = session.scalar(there.where(Project.name == project, Artifact.name == name))
    if artifact is None:
        moved = select(FormerName.artifact_id).join(Project, Project.id == FormerName.project_id)
        former = moved.where(Project.name == project, FormerName.name == name)
        artifact = session.scalar(there.where(Artifact.id.in_(former)))
    if artifact is None:
        known = session.execute(
            select(Project.name, Artifact.name)
            .join(Artifact.project)
            .where(visible_projects(actor), Artifact.deleted_at.is_(None))
            .order_by(Artifact.updated_at.desc())
            .limit(MAX_ARTIFACTS)
        )
        paths = [f"{p}/{n}" for p, n in known]
        near = get_close_matches(f"{project}/{name}", paths, n=3, cutoff=0.5)
        raise NotFound(
            f"There is no artifact {project}/{name}.",
            hint=f"Nearest: {', '.join(near)}." if near else "`GET /api/v1/artifacts` lists them.",
            errors=[{"loc": ["ref"], "msg": f"no such artifact (got '{project}/{name}')"}],
        )
    return artifact


def list_artifacts(
    session: Session,
    actor: Actor,
    kind: str | None = None,
    project: str | None = None,
    q: str | None = None,
    limit: int = MAX_ARTIFACTS,
) -> list[Document]:
    """Return artifacts that have a version, last changed first; ``latest`` is main's head."""
    query = select(Artifact.id).join(Artifact.project).where(visible_projects(actor))
    if kind:
        query = query.where(Artifact.kind == kind)
    if project:
        query = query.where(Project.name == project)
    if q:
        query = query.where((Project.name + "/" + Artifact.name).icontains(q, autoescape=True))
    # Which they are first, then what they are: main's head is looked for in those alone.
    newest_first = Artifact.updated_at.desc(), Artifact.id.desc()
    chosen = session.scalars(
        query.where(Artifact.deleted_at.is_(None), has_main())
        .order_by(*newest_first)
        .limit(max(1, min(limit, MAX_ARTIFACTS)))
    ).all()
    head = aliased(Version)
    rows = session.execute(
        select(
            Artifact.id,
            Project.name,
            Artifact.name,
            Artifact.kind,
            Artifact.created_at,
            Artifact.updated_at,
            head.number,
            head.commit,
            head.size,
            head.created_at,
        )
        .join(Artifact.project)
        .join(head, and_(head.artifact_id == Artifact.id, head.number == main_head()))
        .where(Artifact.id.in_(chosen))
        .order_by(*newest_first)
    ).all()
    aliases = _aliases(session, chosen)
    return [_listed(aliases.get(key, []), *told) for key, *told in rows]


def _listed(
    aliases: list[str],
    project: str,
    name: str,
    kind: str,
    created: datetime,
    updated: datetime,
    number: int,
    commit: str,
    size: int,
    published: datetime,
) -> Document:
    return {
        "project": project,
        "name": name,
        "kind": kind,
        "created_at": stamp(created),
        "updated_at": stamp(updated),
        "latest": {
            "ref": f"{project}/{name}@v{number}",
            "commit": commit,
            "size": size,
            "created_at": stamp(published),
        },
        "aliases": aliases,
    }


def _aliases(session: Session, artifact_ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the names that point into these artifacts, in order, by artifact."""
    found: dict[str, list[str]] = {}
    for artifact_id, name in session.execute(
        select(Alias.artifact_id, Alias.name)
        .where(Alias.artifact_id.in_(artifact_ids))
        .order_by(Alias.artifact_id, Alias.name)
    ):
        found.setdefault(artifact_id, []).append(name)
    return found


def artifact_document(session: Session, artifact: Artifact) -> Document:
    """Return the artifact with its versions, newest first, and its aliases."""
    versions = session.scalars(
        select(Version)
        .where(Version.artifact_id == artifact.id, Version.deleted_at.is_(None))
        .order_by(Version.number.desc())
    ).all()
    aliases = session.execute(
        select(Alias.name, Version.number)
        .join(Alias.version)
        .where(Alias.artifact_id == artifact.id)
        .order_by(Alias.name)
    )
    creators = _names(session, [version.created_by for version in versions])
    return {
        **_head(artifact),
        "latest": next((_short(version) for version in versions if version.branch == MAIN), None),
        "versions": [
            {
                **_short(version),
                "number": version.number,
                "meta": version.meta,
                "created_by": creators.get(version.created_by or ""),
                "job": version.job_id,
            }
            for version in versions
        ],
        "aliases": {name: f"v{number}" for name, number in aliases},
    }


def version_document(session: Session, actor: Actor, version: Version) -> Document:
    """Return the version with its files and its lineage one step up and down.

    Relatives in projects the actor is not in are left out.
    """
    creators = _names(session, [version.created_by])
    return {
        "ref": version_ref(version),
        "project": version.artifact.project.name,
        "name": version.artifact.name,
        "kind": version.artifact.kind,
        "commit": version.commit,
        "number": version.number,
        "size": version.size,
        "files": file_documents(version),
        "meta": version.meta,
        "aliases": list(
            session.scalars(
                select(Alias.name).where(Alias.version_id == version.id).order_by(Alias.name)
            )
        ),
        "created_at": stamp(version.created_at),
        "created_by": creators.get(version.created_by or ""),
        "job": _visible_job(session, actor, version.job_id),
        "parents": _relatives(session, actor, version, up=True),
        "children": _relatives(session, actor, version, up=False),
    }


def _relatives(session: Session, actor: Actor, version: Version, *, up: bool) -> list[Document]:
    other, mine = (
        (Lineage.parent_id, Lineage.child_id) if up else (Lineage.child_id, Lineage.parent_id)
    )
    rows = session.execute(
        select(Lineage.role, Version)
        .join(Version, Version.id == other)
        .join(Version.artifact)
        .join(Artifact.project)
        .options(contains_eager(Version.artifact).contains_eager(Artifact.project))
        .where(mine == version.id, Version.deleted_at.is_(None), visible_projects(actor))
        .order_by(Version.created_at, Version.id, Lineage.role)
    )
    return [
        {
            "role": role,
            "ref": version_ref(relative),
            "kind": relative.artifact.kind,
            "commit": relative.commit,
            "job": relative.job_id,
        }
        for role, relative in rows
    ]


def _visible_job(session: Session, actor: Actor, job_id: str | None) -> str | None:
    if job_id is None:
        return None
    return session.scalar(
        select(Job.id).join(Job.project).where(Job.id == job_id, visible_projects(actor))
    )


def _head(artifact: Artifact) -> Document:
    return {
        "project": artifact.project.name,
        "name": artifact.name,
        "kind": artifact.kind,
        "created_at": stamp(artifact.created_at),
        "updated_at": stamp(artifact.updated_at),
    }


def _short(version: Version) -> Document:
    return {
        "ref": version_ref(version),
        "commit": version.commit,
        "size": version.size,
        "created_at": stamp(version.created_at),
    }


def _names(session: Session, user_ids: Sequence[str | None]) -> dict[str, str]:
    wanted = {user_id for user_id in user_ids if user_id}
    if not wanted:
        return {}
    rows = session.execute(select(User.id, User.name).where(User.id.in_(wanted)))
    return dict(rows.all())
