"""Histories of branches: each version and the one that it was committed upon."""

from dataclasses import dataclass
from datetime import datetime
from html import escape

from sqlalchemy import select
from sqlalchemy.orm import Session

from scheduler.catalog.registry import MAIN, TAG, head
from scheduler.models import Alias, Artifact, User, Version
from scheduler.queries import Document, stamp


@dataclass(frozen=True, slots=True)
class Step:
    """One version in a branch's history, without its files and facts."""

    id: str
    number: int
    commit: str
    branch: str
    previous_id: str | None
    message: str | None
    job_id: str | None
    created_by: str | None
    created_at: datetime
    deleted_at: datetime | None


def line_of(session: Session, version: Version) -> list[Step]:
    """Return the version and those before it in its branch, newest first; deleted ones are out.

    Versions that are older than branches do not tell what was before them: they were main's.
    """
    rows = session.execute(
        select(
            Version.id,
            Version.number,
            Version.commit,
            Version.branch,
            Version.previous_id,
            Version.message,
            Version.job_id,
            Version.created_by,
            Version.created_at,
            Version.deleted_at,
        )
        .where(Version.artifact_id == version.artifact_id)
        .order_by(Version.number.desc())
    )
    steps = [Step(**row) for row in rows.mappings()]
    by_id = {step.id: index for index, step in enumerate(steps)}
    found: list[Step] = []
    seen: set[int] = set()
    index: int | None = by_id[version.id]
    while index is not None and index not in seen:
        seen.add(index)
        step = steps[index]
        if step.deleted_at is None:
            found.append(step)
        index = by_id.get(step.previous_id or "")
        if index is None and step.branch == MAIN:
            older = [i for i in range(by_id[step.id] + 1, len(steps)) if steps[i].branch == MAIN]
            index = older[0] if older else None
    return found


def commit_documents(
    session: Session, version: Version, first: int, limit: int, *, formatted: bool = False
) -> list[Document]:
    """Return ``limit`` commits of the version's history, from the ``first`` (0 is itself)."""
    steps = line_of(session, version)[first : first + limit]
    ids = {step.created_by for step in steps if step.created_by}
    names = dict(session.execute(select(User.id, User.name).where(User.id.in_(ids))).all())
    return [_commit(step, names.get(step.created_by or ""), formatted) for step in steps]


def _commit(step: Step, author: str | None, formatted: bool) -> Document:
    text = (step.message or "").partition("\n")[2].strip()
    if not text and step.job_id:
        text = f"Made by job {step.job_id}."
    found: Document = {
        "id": step.commit,
        "title": title_of(step),
        "message": text,
        "date": stamp(step.created_at),
        "authors": [{"user": author}] if author else [],
    }
    if formatted:
        found["formatted"] = {"title": escape(title_of(step)), "message": escape(text)}
    return found


def title_of(step: Step) -> str:
    """Return a commit's title; what was not committed is called by its number."""
    return (step.message or "").partition("\n")[0] or f"v{step.number}"


def refs_document(session: Session, artifact: Artifact) -> Document:
    """Return branches (main, those people made, aliases) and tags (also the versions' numbers)."""
    versions = session.execute(
        select(Version.number, Version.commit)
        .where(Version.artifact_id == artifact.id, Version.deleted_at.is_(None))
        .order_by(Version.number.desc())
    ).all()
    named = session.execute(
        select(Alias.name, Alias.kind, Version.commit)
        .join(Alias.version)
        .where(Alias.artifact_id == artifact.id, Version.deleted_at.is_(None))
        .order_by(Alias.name)
    ).all()
    main = head(session, artifact)
    branches = [(MAIN, main.commit)] if main else []
    branches += [(row.name, row.commit) for row in named if row.kind != TAG]
    tags = [(row.name, row.commit) for row in named if row.kind == TAG]
    tags += [(f"v{number}", commit) for number, commit in versions]
    return {
        "branches": [_ref("heads", name, commit) for name, commit in branches],
        "tags": [_ref("tags", name, commit) for name, commit in tags],
        "converts": [],
        "pullRequests": [],
    }


def _ref(space: str, name: str, commit: str) -> Document:
    return {"name": name, "ref": f"refs/{space}/{name}", "targetCommit": commit}
