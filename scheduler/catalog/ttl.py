"""Versions that nobody needs go by themselves, where a project says so.

Only what nothing names goes: no alias, branch or tag points at it, it is not the newest of its
branch, no job that has not ended uses it, no gate measures on it, and nothing that stands under a
gated alias was made from it. It goes as if a person had deleted it: for the grace it can be
brought back.
"""

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from scheduler.access import SYSTEM
from scheduler.catalog import retiring
from scheduler.catalog.registry import head, label, locked
from scheduler.db import Database, now
from scheduler.models import Alias, Artifact, Gate, Lineage, Project, Version


def expire(database: Database, dry_run: bool = False) -> list[str]:
    """Delete what is older than its project's limit and what nothing names; return the labels.

    Each version goes in a transaction of its own, under its artifact's lock.
    """
    with database.reading() as session:
        aged = _aged(session)
        gone = [label(version) for version in aged if _goes(session, version)]
    if dry_run:
        return gone
    return [name for version in aged if (name := _expire(database, version.id)) is not None]


def _aged(session: Session) -> list[Version]:
    """Return the versions that are older than their project lets them be, oldest first."""
    found: list[Version] = []
    for project in session.scalars(select(Project).where(Project.ttl_days.is_not(None))):
        before = now(session) - timedelta(days=project.ttl_days or 0)
        found += session.scalars(
            select(Version)
            .join(Version.artifact)
            .where(
                Artifact.project_id == project.id,
                Artifact.deleted_at.is_(None),
                Version.deleted_at.is_(None),
                Version.created_at < before,
            )
            .order_by(Version.created_at, Version.id)
        )
    return found


def _expire(database: Database, version_id: str) -> str | None:
    with database.transaction() as session:
        version = session.get_one(Version, version_id)
        artifact = locked(session, Artifact.id == version.artifact_id)
        session.refresh(version, ["deleted_at"])
        if version.deleted_at or artifact.deleted_at or not _goes(session, version):
            return None
        days = artifact.project.ttl_days
        retiring.hide(session, SYSTEM, version, f"older than {days} days, and nothing names it")
        return label(version)


def _goes(session: Session, version: Version) -> bool:
    if version.artifact.project.ttl_days is None:  # taken back meanwhile
        return False
    if head(session, version.artifact, version.branch) is version:
        return False
    return retiring.why_kept(session, version) is None and not _is_below_gated(session, version)


def _is_below_gated(session: Session, version: Version) -> bool:
    """Whether what stands under a gated alias was made from it, in any number of steps."""
    gated = (
        select(Alias.version_id)
        .join(Gate, (Gate.artifact_id == Alias.artifact_id) & (Gate.alias == Alias.name))
        .cte("gated", recursive=True)
    )
    child = aliased(gated)
    parents = select(Lineage.parent_id).join(child, Lineage.child_id == child.c.version_id)
    above = gated.union(parents)
    there = select(above.c.version_id).where(above.c.version_id == version.id)
    return session.scalar(there.limit(1)) is not None
