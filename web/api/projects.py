"""``/api/v1``: projects."""

from espalier.errors import InvalidInput
from scheduler import access
from scheduler.catalog import projects, quota
from scheduler.queries import Document
from scheduler.queries.projects import list_projects
from web.api.asked import ProjectRequest, RoomRequest
from web.api.models import ProjectAnswer, ProjectsAnswer
from web.auth import actor
from web.routes import Routes
from web.services import services


def add(routes: Routes) -> None:
    """Add the routes of projects."""

    @routes.route("GET", "/projects", answer=ProjectsAnswer)
    def get_projects() -> Document:
        """List your projects, and your role in each."""
        with services().database.reading() as session:
            return {"projects": list_projects(session, actor())}

    @routes.route("PATCH", "/projects/<name>", answer=ProjectAnswer)
    def change_project(name: str, body: ProjectRequest) -> Document:
        """Change a project's rules: preemption, quota, age limit. Owners and admins only.

        What the body does not name stays. The quota is an admin's to set. A running job of a
        preemptible project is paused, after a checkpoint, when a job of higher priority fits
        nowhere else; it goes on as soon as there is room.
        """
        if not body.model_fields_set:
            raise InvalidInput("Nothing to change was named.", errors=[{"loc": [], "msg": "empty"}])
        with services().committing() as session:
            project = access.project_for(session, actor(), name)
            if "preemptible" in body.model_fields_set:
                projects.set_preemptible(session, actor(), project, body.preemptible)
            if "quota_bytes" in body.model_fields_set:
                projects.set_quota(session, actor(), project, body.quota_bytes)
            if "ttl_days" in body.model_fields_set:
                projects.set_ttl(session, actor(), project, body.ttl_days)
            session.flush()
            return list_projects(session, actor(), name)[0]

    @routes.route("POST", "/projects/<name>/room", status=204)
    def check_room(name: str, body: RoomRequest) -> None:
        """Say whether a project's quota has room for blobs, before they are uploaded; else 507.

        What the project holds already costs nothing. Publishing asks again.
        """
        with services().database.reading() as session:
            quota.check(session, access.project_for(session, actor(), name), body.files)
