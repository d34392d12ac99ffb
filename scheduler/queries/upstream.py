"""What the team's jobs and aliases need of the hub behind, and for whom a worker reads it."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.states import ATTEMPT_LIVE, JOB_OPEN, ArtifactKind
from scheduler.models import Alias, Artifact, Attempt, Job, JobInput, Lineage, Version


def needed_upstream(session: Session) -> set[tuple[str, str]]:
    """Return the (type, repository) of another hub that must stay at hand.

    Those that open jobs wait for or use, and the base models without which an adapter that an
    alias or a tag points at is worth nothing: those of the job that made it and of the versions
    that it was made from. A fused or quantised model needs no base any more, and data that an
    adapter was trained on is not needed to use it.
    """
    for_jobs = (
        select(JobInput.role, JobInput.hub_repo)
        .join(Job, Job.id == JobInput.job_id)
        .where(JobInput.hub_repo.is_not(None), Job.state.in_(JOB_OPEN))
    )
    found = {(_type(role), str(repo)) for role, repo in session.execute(for_jobs)}
    aliased = (
        select(Version.id, Version.job_id)
        .join(Artifact, Artifact.id == Version.artifact_id)
        .join(Alias, Alias.version_id == Version.id)
        .where(
            Artifact.kind == ArtifactKind.ADAPTER,
            Artifact.deleted_at.is_(None),
            Version.deleted_at.is_(None),
            Alias.kind != "branch",
        )
    ).cte("needed", recursive=True)
    parent = select(Version.id, Version.job_id).join(Lineage, Lineage.parent_id == Version.id)
    needed = aliased.union(parent.join(aliased, aliased.c.id == Lineage.child_id))
    bases = (
        select(JobInput.role, JobInput.hub_repo)
        .join(needed, needed.c.job_id == JobInput.job_id)
        .where(JobInput.hub_repo.is_not(None), JobInput.role != "data")
    )
    return found | {(_type(role), str(repo)) for role, repo in session.execute(bases)}


def readers_behind(session: Session, worker_id: str, repo: str) -> set[str]:
    """Return the ids of those whose jobs the worker runs now with this repository as an input."""
    rows = session.scalars(
        select(Job.created_by)
        .join(Attempt, Attempt.job_id == Job.id)
        .join(JobInput, JobInput.job_id == Job.id)
        .where(
            Attempt.worker_id == worker_id,
            Attempt.state.in_(ATTEMPT_LIVE),
            JobInput.hub_repo == repo,
            Job.created_by.is_not(None),
        )
    )
    return {str(user) for user in rows}


def _type(role: str) -> str:
    return "datasets" if role == "data" else "models"
