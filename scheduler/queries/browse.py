"""The store's shelves: artifacts found, filtered, sorted and counted, a page at a time.

What a page shows of an artifact is the head of its main branch. One query counts, one finds the
page, one brings the names of what is on it: ten thousand artifacts cost as much as a hundred.
"""

from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Select, and_, exists, func, select
from sqlalchemy.orm import Session, aliased, contains_eager

from scheduler.access import Actor, visible_projects
from scheduler.catalog.registry import MAIN
from scheduler.models import Alias, Artifact, Project, Version
from scheduler.queries import Document, stamp
from scheduler.queries.newest import main_head

#: Artifacts of one page.
PAGE = 50
SORTS = ("changed", "name", "size", "made")
MADE = ("job", "people")


@dataclass(frozen=True, slots=True)
class Filters:
    """What is asked for; None is anything. ``alias`` is a name of any kind: alias, branch, tag.

    ``made`` is "job" or "people"; ``deleted`` shows the artifacts that can be brought back.
    """

    q: str | None = None
    kind: str | None = None
    project: str | None = None
    alias: str | None = None
    made: str | None = None
    deleted: bool = False
    sort: str = "changed"


def page(session: Session, actor: Actor, filters: Filters, number: int = 1) -> list[Document]:
    """Return page ``number``, from 1, of the artifacts that fit."""
    head, query = _found(actor, filters)
    order = {
        "name": (Project.name, Artifact.name),
        "size": (head.size.desc(), Artifact.id.desc()),
        "made": (Artifact.created_at.desc(), Artifact.id.desc()),
    }.get(filters.sort, (Artifact.updated_at.desc(), Artifact.id.desc()))
    chosen = (
        query.with_only_columns(Artifact, head)
        .options(contains_eager(Artifact.project))
        .order_by(*order)
        .limit(PAGE)
        .offset((max(1, number) - 1) * PAGE)
    )
    rows = session.execute(chosen).all()
    names = _names(session, [artifact.id for artifact, _ in rows])
    return [_document(artifact, version, names.get(artifact.id, [])) for artifact, version in rows]


def counts(session: Session, actor: Actor, filters: Filters) -> dict[str, int]:
    """Return kind → how many artifacts fit, whatever the kind asked for."""
    _, query = _found(actor, replace(filters, kind=None))
    rows = session.execute(
        query.with_only_columns(Artifact.kind, func.count()).group_by(Artifact.kind)
    )
    return dict(rows.all())


def names_of(session: Session, actor: Actor, kind: str, limit: int = 500) -> list[str]:
    """Return ``project/name`` of artifacts of a kind, last changed first: what a form offers."""
    rows = session.execute(
        select(Project.name, Artifact.name)
        .join(Artifact.project)
        .where(Artifact.kind == kind, Artifact.deleted_at.is_(None), visible_projects(actor))
        .order_by(Artifact.updated_at.desc())
        .limit(limit)
    )
    return [f"{project}/{name}" for project, name in rows]


def alias_names(session: Session, actor: Actor, limit: int = 100) -> list[str]:
    """Return the names that versions have, those that most artifacts use first."""
    rows = session.execute(
        select(Alias.name)
        .join(Alias.artifact)
        .join(Artifact.project)
        .where(Artifact.deleted_at.is_(None), visible_projects(actor))
        .group_by(Alias.name)
        .order_by(func.count().desc(), Alias.name)
        .limit(limit)
    )
    return list(rows.scalars())


def _found(actor: Actor, filters: Filters) -> tuple[type[Version], Select[Artifact]]:
    """Return the alias of the head's table, and the query of artifacts with it, unordered."""
    head = aliased(Version)
    query = (
        select(Artifact)
        .join(Artifact.project)
        .join(head, and_(head.artifact_id == Artifact.id, head.number == main_head()))
        .where(visible_projects(actor), *_conditions(filters, head))
    )
    return head, query


def _conditions(filters: Filters, head: type[Version]) -> list[ColumnElement[bool]]:
    gone = Artifact.deleted_at.is_not(None) if filters.deleted else Artifact.deleted_at.is_(None)
    found: list[ColumnElement[bool]] = [gone]
    if filters.kind:
        found.append(Artifact.kind == filters.kind)
    if filters.project:
        found.append(Project.name == filters.project)
    if filters.q:
        path = Project.name + "/" + Artifact.name
        found += [path.icontains(word, autoescape=True) for word in filters.q.split()[:8]]
    if filters.alias:
        named = (Alias.artifact_id == Artifact.id) & (Alias.name == filters.alias)
        found.append(exists().where(named))
    if filters.made in MADE:
        by_job = head.job_id.is_not(None)
        found.append(by_job if filters.made == "job" else ~by_job)
    return found


def _names(session: Session, ids: list[str]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    rows = session.execute(
        select(Alias.artifact_id, Alias.name, Alias.kind)
        .where(Alias.artifact_id.in_(ids), Alias.name != MAIN)
        .order_by(Alias.name)
    )
    for artifact_id, name, kind in rows:
        found.setdefault(artifact_id, []).append((name, kind))
    return found


def _document(artifact: Artifact, head: Version, names: list[tuple[str, str]]) -> Document:
    return {
        "project": artifact.project.name,
        "name": artifact.name,
        "kind": artifact.kind,
        "updated_at": stamp(artifact.updated_at),
        "deleted_at": stamp(artifact.deleted_at),
        "number": head.number,
        "commit": head.commit,
        "size": head.size,
        "job": head.job_id,
        "incomplete": head.meta.get("incomplete"),
        "names": names,
    }
