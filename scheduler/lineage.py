"""What a version was made from, and what was made from it."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from scheduler.models import Lineage, Version

#: Relatives that are listed in each direction.
MAX_RELATIVES = 500


@dataclass(frozen=True, slots=True)
class Relative:
    """A version ``depth`` steps away; ``role`` is the parent's role in the step from ``of``.

    ``of`` is the id of the version one step nearer to the one that was asked about.
    """

    version: Version
    role: str
    of: str
    depth: int


@dataclass(frozen=True, slots=True)
class Family:
    """What a version was made from, and what was made from it; nearest first."""

    ancestors: tuple[Relative, ...]
    descendants: tuple[Relative, ...]


def family(session: Session, version: Version) -> Family:
    """Return both sides of the tree, up to MAX_RELATIVES each; deleted versions are in it."""
    return Family(
        _relatives(session, version, Lineage.child_id, Lineage.parent_id),
        _relatives(session, version, Lineage.parent_id, Lineage.child_id),
    )


def _relatives(
    session: Session,
    version: Version,
    near: InstrumentedAttribute[str],
    far: InstrumentedAttribute[str],
) -> tuple[Relative, ...]:
    """Walk one level a query; a version reached twice is listed by each way that leads to it."""
    found: list[Relative] = []
    seen, level, depth = {version.id}, [version.id], 0
    while level and len(found) < MAX_RELATIVES:
        depth += 1
        steps = session.execute(
            select(Lineage.role, near, Version)
            .join(Version, Version.id == far)
            .where(near.in_(level))
            .order_by(Version.created_at, Version.id, Lineage.role)
            .limit(MAX_RELATIVES - len(found))
        ).all()
        found += [Relative(relative, role, of, depth) for role, of, relative in steps]
        level = sorted({relative.id for _, _, relative in steps} - seen)
        seen.update(level)
    return tuple(found)
