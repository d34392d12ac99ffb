"""Projects as documents: what each is, and who the actor is in it."""

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from scheduler.access import Actor, visible_projects
from scheduler.catalog import quota
from scheduler.models import Project, ProjectMember
from scheduler.queries import Document, stamp


def list_projects(session: Session, actor: Actor, name: str | None = None) -> list[Document]:
    """Return the projects the actor sees, or the one of this name, by name.

    ``role`` is the actor's own: owner, member, or None for an admin who is neither.
    """
    query = (
        select(Project, ProjectMember.role)
        .outerjoin(
            ProjectMember,
            and_(ProjectMember.project_id == Project.id, ProjectMember.user_id == actor.user_id),
        )
        .where(visible_projects(actor))
        .order_by(Project.name)
    )
    if name is not None:
        query = query.where(Project.name == name)
    return [
        {
            "name": project.name,
            "role": role,
            "weight": project.weight,
            "preemptible": project.preemptible,
            "quota_bytes": project.quota_bytes,
            "used_bytes": quota.usage(session, project),
            "ttl_days": project.ttl_days,
            "created_at": stamp(project.created_at),
        }
        for project, role in session.execute(query)
    ]
