"""What a project's people decide about it."""

from typing import Any

from sqlalchemy.orm import Session

from espalier.errors import Forbidden, InvalidInput
from scheduler import access
from scheduler.access import Actor
from scheduler.models import Project, ProjectMember

#: Days that an age limit has at least: what was made on Friday is there on Monday.
MIN_TTL = 3
MAX_TTL = 36_500


def may_manage(session: Session, actor: Actor, project: Project) -> bool:
    """Whether the actor is an admin or an owner of the project."""
    if actor.is_admin:
        return True
    member = session.get(ProjectMember, (project.id, actor.user_id)) if actor.user_id else None
    return member is not None and member.role == "owner"


def require_manager(session: Session, actor: Actor, project: Project) -> None:
    """Raise Forbidden for anybody but admins and the project's owners."""
    if not may_manage(session, actor, project):
        raise Forbidden(
            f"Only an owner of {project.name} or an admin can change it.",
            hint="`GET /api/v1/projects` tells your role in each.",
        )


def set_preemptible(session: Session, actor: Actor, project: Project, preemptible: bool) -> None:
    """Say whether the project's running jobs may be paused for more urgent ones.

    Raises Forbidden for anybody but admins and the project's owners.
    """
    require_manager(session, actor, project)
    _change(session, actor, project, "preemptible", preemptible)


def set_quota(session: Session, actor: Actor, project: Project, quota_bytes: int | None) -> None:
    """Say how many bytes the project's versions may take; None is no limit.

    Less than it takes now is possible: nothing more comes in then. Raises Forbidden for anybody
    but admins, InvalidInput below zero.
    """
    access.require_admin(actor)
    if quota_bytes is not None and not 0 <= quota_bytes < 1 << 62:
        raise _refused("quota_bytes", quota_bytes, "must be 0 bytes or more, or nothing")
    _change(session, actor, project, "quota_bytes", quota_bytes)


def set_ttl(session: Session, actor: Actor, project: Project, ttl_days: int | None) -> None:
    """Say after how many days versions go that nothing names; None keeps them.

    Raises Forbidden for anybody but admins and the project's owners, InvalidInput for less than
    MIN_TTL days.
    """
    require_manager(session, actor, project)
    if ttl_days is not None and not MIN_TTL <= ttl_days <= MAX_TTL:
        raise _refused("ttl_days", ttl_days, f"must be {MIN_TTL} to {MAX_TTL} days, or nothing")
    _change(session, actor, project, "ttl_days", ttl_days)


def _refused(field: str, value: object, problem: str) -> InvalidInput:
    return InvalidInput(
        f"{field} {problem} (got {value}).", errors=[{"loc": [field], "msg": f"{problem}"}]
    )


def _change(session: Session, actor: Actor, project: Project, field: str, value: Any) -> None:
    before = getattr(project, field)
    if before == value:
        return
    setattr(project, field, value)
    session.flush()
    told = {field: value} if field == "preemptible" else {"from": before, "to": value}
    access.audit(session, actor, f"project.{field}", project.name, told)
