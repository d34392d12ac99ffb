"""How much of the store a project may take.

What counts are the files of its versions that are there, each blob once, however many versions
hold it. What is deleted counts no more, though its bytes stay for the grace; bringing it back asks
for the room again. What a job has made is always taken: a night's training is not thrown away for
a number. The project is over its quota then, and takes no new uploads and no new jobs until
somebody makes room.
"""

from collections.abc import Mapping

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from espalier.errors import QuotaExceeded
from scheduler.models import Artifact, Project, Version, VersionFile


def usage(session: Session, project: Project) -> int:
    """Return the bytes that count against the project's quota."""
    blobs = _blobs(project).distinct().subquery()
    # PostgreSQL sums bigint to numeric, which Python has as Decimal.
    return int(session.scalar(select(func.coalesce(func.sum(blobs.c.size), 0))) or 0)


def check(session: Session, project: Project, new: Mapping[str, int]) -> None:
    """Refuse blobs, sha256 → bytes, that the project's quota has no room for.

    Those that the project holds already cost nothing. The project's row is locked until the
    transaction ends: of two that want the last room, one gets it. Raises QuotaExceeded with what
    is used, the limit and what was wanted.
    """
    limit = _limit(session, project)
    if limit is None:
        return
    there = _held(session, project, new)
    wanted = sum(size for sha256, size in new.items() if sha256 not in there)
    used = usage(session, project)
    if wanted and used + wanted > limit:
        raise QuotaExceeded(
            f"{project.name} uses {_bytes(used)} of its quota of {_bytes(limit)}: there is no room"
            f" for {_bytes(wanted)} more.",
            hint=_HINT.format(project=project.name),
        )


def check_room(session: Session, project: Project) -> None:
    """Refuse what would make more, such as a job, while the quota is used up.

    Raises QuotaExceeded with what is used and the limit.
    """
    limit = project.quota_bytes
    if limit is None:
        return
    used = usage(session, project)
    if used >= limit:
        raise QuotaExceeded(
            f"{project.name} uses {_bytes(used)} and its quota is {_bytes(limit)}: no job is taken"
            " that would make more.",
            hint=_HINT.format(project=project.name),
        )


_HINT = (
    "Delete what {project} needs no more, or ask an admin for"
    " `espalier project set {project} --quota …`."
)


def _limit(session: Session, project: Project) -> int | None:
    """Read the quota under the project's lock; references to the project are not held up by it."""
    if project.quota_bytes is None:
        return None
    row = select(Project).where(Project.id == project.id).with_for_update(key_share=True)
    fresh = session.scalars(row.execution_options(populate_existing=True)).one()
    return fresh.quota_bytes


def _blobs(project: Project) -> Select[str, int]:
    return (
        select(VersionFile.sha256, VersionFile.size)
        .join(Version, Version.id == VersionFile.version_id)
        .join(Artifact, Artifact.id == Version.artifact_id)
        .where(
            Artifact.project_id == project.id,
            Artifact.deleted_at.is_(None),
            Version.deleted_at.is_(None),
        )
    )


def _held(session: Session, project: Project, names: Mapping[str, int]) -> set[str]:
    wanted = sorted(names)
    found: set[str] = set()
    for first in range(0, len(wanted), 1000):
        some = _blobs(project).where(VersionFile.sha256.in_(wanted[first : first + 1000]))
        found.update(row.sha256 for row in session.execute(some))
    return found


def _bytes(size: int) -> str:
    """Return bytes as people write them, with the digits that tell two of them apart."""
    for unit, step in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.2f} {unit}"
    return f"{size} bytes"
