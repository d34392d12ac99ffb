"""What a project's people decide about it."""

from sqlalchemy.orm import Session

from espalier.errors import Forbidden
from scheduler import access
from scheduler.access import Actor
from scheduler.models import Project, ProjectMember


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
    if project.preemptible == preemptible:
        return
    project.preemptible = preemptible
    access.audit(session, actor, "project.preemptible", project.name, {"preemptible": preemptible})
