"""``/api/v1``: projects."""

from scheduler import access, projects
from scheduler.queries import Document
from scheduler.queries.projects import list_projects
from web.api.asked import ProjectRequest
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
        """Change a project: may its jobs be paused for more urgent ones? Owners and admins only.

        A running job of a preemptible project is paused, after a checkpoint, when a job of higher
        priority fits nowhere else; it goes on as soon as there is room.
        """
        with services().committing() as session:
            project = access.project_for(session, actor(), name)
            projects.set_preemptible(session, actor(), project, body.preemptible)
            session.flush()
            return list_projects(session, actor(), name)[0]
