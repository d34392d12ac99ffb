"""What a version was made from, what was made from it, and by which job on which machine."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session, joinedload

from scheduler.models import Artifact, Attempt, Job, Lineage, Version

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


@dataclass(frozen=True, slots=True)
class Maker:
    """The job that made a version, and the machine it ran on, as it was then.

    ``versions`` are those of mlx, mlx-lm and the others.
    """

    job: str
    name: str
    kind: str
    attempt: int | None
    worker: str | None
    chip: str | None
    platform: str | None
    versions: dict[str, str] = field(default_factory=dict)

    def sentence(self) -> str:
        """Return "attempt 1 on studio-1: Apple M3 Ultra, macOS 26.1, mlx 0.30.4"."""
        on = f" on {self.worker}" if self.worker else ""
        tools = [f"{name} {number}" for name, number in self.versions.items()]
        machine = ", ".join(filter(None, (self.chip, self.platform, *tools)))
        told = f"attempt {self.attempt}{on}" if self.attempt else on.strip()
        return ": ".join(filter(None, (told, machine)))


def family(session: Session, version: Version) -> Family:
    """Return both sides of the tree, up to MAX_RELATIVES each; deleted versions are in it."""
    return Family(
        _relatives(session, version, Lineage.child_id, Lineage.parent_id),
        _relatives(session, version, Lineage.parent_id, Lineage.child_id),
    )


def makers(
    session: Session, versions: Iterable[Version], projects: Collection[str]
) -> dict[str, Maker]:
    """Return version id → the job that made it, of those whose project id is in ``projects``."""
    by_job = {version.id: version for version in versions if version.job_id}
    rows = session.execute(
        select(Version.id, Job, Attempt.number)
        .join(Job, Job.id == Version.job_id)
        .outerjoin(Attempt, Attempt.id == Version.attempt_id)
        .where(Version.id.in_(by_job), Job.project_id.in_(projects))
    )
    return {key: _maker(by_job[key], job, number) for key, job, number in rows}


def _maker(version: Version, job: Job, attempt: int | None) -> Maker:
    told = version.meta.get("worker")
    machine = told if isinstance(told, dict) else {}
    tools = machine.get("versions")
    return Maker(
        job=job.id,
        name=job.name,
        kind=job.kind,
        attempt=attempt,
        worker=machine.get("name"),
        chip=machine.get("chip"),
        platform=machine.get("platform"),
        versions=tools if isinstance(tools, dict) else {},
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
            .options(joinedload(Version.artifact).joinedload(Artifact.project))
            .where(near.in_(level))
            .order_by(Version.created_at, Version.id, Lineage.role)
            .limit(MAX_RELATIVES - len(found))
        ).all()
        found += [Relative(relative, role, of, depth) for role, of, relative in steps]
        level = sorted({relative.id for _, _, relative in steps} - seen)
        seen.update(level)
    return tuple(found)
