"""What people throw away: hidden at once, collected after the grace."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import Conflict
from espalier.states import JOB_OPEN
from scheduler.access import Actor, audit
from scheduler.db import now
from scheduler.models import Alias, Artifact, Job, JobInput, Version
from scheduler.registry import changed, label, locked


def delete_version(session: Session, actor: Actor, version: Version) -> None:
    """Hide a version; garbage collection takes its files after the grace. Lineage stays.

    Raises Conflict while an alias points at it or a job that has not ended uses it.
    """
    if version.deleted_at is not None:
        return
    locked(session, Artifact.id == version.artifact_id)
    alias = session.scalar(select(Alias.name).where(Alias.version_id == version.id))
    if alias is not None:
        raise Conflict(f"{label(version)} is {alias}.", hint="Move or remove the alias first.")
    job = session.scalar(
        select(Job.id)
        .join(JobInput, JobInput.job_id == Job.id)
        .where(JobInput.version_id == version.id, Job.state.in_(JOB_OPEN))
    )
    if job is not None:
        raise Conflict(f"{label(version)} is an input of job {job}.", hint="Wait for it to end.")
    version.deleted_at = now(session)
    changed(version.artifact)
    session.flush()
    audit(session, actor, "version.delete", label(version), {"commit": version.commit})
