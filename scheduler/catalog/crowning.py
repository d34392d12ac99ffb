"""A sweep's best checkpoint is the adapter's next version, and its alias ``best`` points at it.

An evaluation with ``move_best`` hands out an output of the role ``best``: the adapter with the
weights of its best checkpoint. It belongs to the artifact that was evaluated, not to the job's own
name, and all of it happens in the transaction that ends the job: there is no moment at which the
job has succeeded and the alias points elsewhere.
"""

from typing import NamedTuple

from sqlalchemy.orm import Session

from espalier.errors import EspalierError
from espalier.messages import OutputManifest
from espalier.states import ArtifactKind, Kind
from scheduler import access
from scheduler.catalog import aliases, registry
from scheduler.db import now
from scheduler.events import record
from scheduler.models import Attempt, Job, Project, User

#: The role of the output, and the alias that is moved.
BEST = "best"


class Place(NamedTuple):
    """Where an output is published."""

    project: Project
    name: str


def place(job: Job, output: OutputManifest) -> Place | None:
    """Return where the best checkpoint of a sweep goes; None for every other output.

    No adapter is deleted while a job that has not ended uses it (scheduler.catalog.retiring).
    """
    if not _is_best(job, output.role) or output.kind != ArtifactKind.ADAPTER:
        return None
    swept = next((item.version for item in job.inputs if item.role == "adapter"), None)
    return Place(swept.artifact.project, swept.artifact.name) if swept else None


def crown(session: Session, attempt: Attempt) -> None:
    """Point the alias at the best version, as the person who submitted the job.

    A gate that refuses it, or an alias that cannot be moved, is told in the job's story: the
    version is there all the same, and the job has succeeded.
    """
    job = attempt.job
    for version in job.outputs:
        if version.attempt_id != attempt.id or not _is_best(job, version.role or ""):
            continue
        owner = session.get(User, job.created_by) if job.created_by else None
        actor = access.actor_for(owner) if owner else access.SYSTEM
        try:
            aliases.set_alias(session, actor, version.artifact, BEST, version)
            message = f"{registry.path_of(version.artifact)}@{BEST} points at v{version.number}."
            level = "info"
        except EspalierError as refused:
            message = f"The alias {BEST} was not moved: {refused.detail}"
            level = "warning"
        record(session, now(session), job, "notice", message, attempt=attempt, level=level)


def _is_best(job: Job, role: str) -> bool:
    return job.kind == Kind.EVAL and role == BEST and bool(job.spec.get("move_best"))
