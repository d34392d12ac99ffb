"""Lists of repositories: narrowed, sorted and paged by the database."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, joinedload

from espalier.errors import InvalidInput
from scheduler.access import Actor, visible_projects
from scheduler.catalog.registry import MAIN
from scheduler.models import Artifact, Project, Version, VersionFile
from scheduler.queries import Document
from scheduler.queries.hub import KINDS, File, Revision, repo_document, tags_of

_SORTS = {"createdAt": Artifact.created_at, "created_at": Artifact.created_at}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which repositories, in which order; ``cursor`` is what the page before gave."""

    search: str = ""
    author: str | None = None
    tags: Sequence[str] = field(default_factory=tuple)
    sort: str = "lastModified"
    ascending: bool = False
    full: bool = False  # with the names of their files
    limit: int = 500
    cursor: str | None = None


def repositories(
    session: Session, actor: Actor, kind: str, wanted: Wanted
) -> tuple[list[Document], str | None]:
    """Return a page of the actor's repositories of a type, and the next page's cursor.

    Each is told at main's head. Raises InvalidInput for a cursor that is none.
    """
    column = _SORTS.get(wanted.sort, Artifact.updated_at)
    kinds = [one for one in KINDS[kind] if set(wanted.tags) <= set(tags_of(one))]
    order = (
        column.asc() if wanted.ascending else column.desc(),
        Artifact.id.asc() if wanted.ascending else Artifact.id.desc(),
    )
    query = (
        select(Artifact.id)  # and no more: all of the actor's are sorted
        .join(Artifact.project)
        .where(Artifact.kind.in_(kinds), Artifact.deleted_at.is_(None), visible_projects(actor))
        .order_by(*order)
        .limit(wanted.limit + 1)
    )
    if wanted.search:
        path = Project.name + "/" + Artifact.name
        query = query.where(path.icontains(wanted.search, autoescape=True))
    if wanted.author:
        query = query.where(Project.name == wanted.author)
    if wanted.cursor:
        query = query.where(_behind(column, wanted))
    ids = session.scalars(query).all()
    whole = select(Artifact).options(joinedload(Artifact.project)).where(Artifact.id.in_(ids))
    found = session.scalars(whole.order_by(*order)).all()
    page = found[: wanted.limit]
    heads = _heads(session, [artifact.id for artifact in page])
    files = _files(session, list(heads.values())) if wanted.full else {}
    documents = [
        repo_document(artifact, heads[artifact.id], files.get(heads[artifact.id].id))
        for artifact in page
        if artifact.id in heads
    ]
    last = page[-1] if len(found) > wanted.limit else None
    return documents, _cursor(getattr(last, column.key), last.id) if last else None


_ON_MAIN = (Version.branch == MAIN, Version.deleted_at.is_(None))


def _heads(session: Session, ids: Sequence[str]) -> dict[str, Revision]:
    """Return artifact → main's head, without its facts, which nobody asks for in a list."""
    newest = (
        select(Version.artifact_id, func.max(Version.number).label("number"))
        .where(Version.artifact_id.in_(ids), *_ON_MAIN)
        .group_by(Version.artifact_id)
        .subquery()
    )
    rows = session.execute(
        select(
            Version.artifact_id, Version.id, Version.commit, Version.size, Version.created_at
        ).join(
            newest,
            and_(newest.c.artifact_id == Version.artifact_id, newest.c.number == Version.number),
        )
    )
    return {row.artifact_id: Revision(*row[1:]) for row in rows}


def _files(session: Session, versions: Sequence[Revision]) -> dict[str, list[File]]:
    """Return version → its files' names and sizes, as far as a list tells them."""
    found: dict[str, list[File]] = {version.id: [] for version in versions}
    rows = session.execute(
        select(VersionFile.version_id, VersionFile.path, VersionFile.size, VersionFile.sha256)
        .where(VersionFile.version_id.in_(found))
        .order_by(VersionFile.path)
    )
    for version_id, path, size, sha256 in rows:
        found[version_id].append(File(path, size, sha256, None))
    return found


def _behind(column: InstrumentedAttribute[datetime], wanted: Wanted) -> ColumnElement[bool]:
    try:
        stamp, last = json.loads(base64.urlsafe_b64decode(str(wanted.cursor)))
        moment = datetime.fromisoformat(stamp)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidInput(
            f"{wanted.cursor!r:.100} is no cursor of a list.", hint="Begin at the first page."
        ) from error
    if not isinstance(last, str) or moment.tzinfo is None:
        raise InvalidInput(f"{wanted.cursor!r:.100} is no cursor of a list.")
    if wanted.ascending:
        return or_(column > moment, and_(column == moment, Artifact.id > last))
    return or_(column < moment, and_(column == moment, Artifact.id < last))


def _cursor(moment: datetime, artifact_id: str) -> str:
    told = json.dumps([moment.isoformat(), artifact_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(told.encode()).decode()
