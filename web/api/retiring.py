"""``/api/v1``: what is deleted, and brought back."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import NotFound
from espalier.refs import ArtifactRef
from scheduler import access
from scheduler.bytes import gc
from scheduler.catalog import registry, retiring
from scheduler.models import Version
from scheduler.queries import Document, rules
from scheduler.queries import artifacts as queries
from web.api.artifacts import find_version
from web.api.models import VersionAnswer
from web.api.told import DeletedAnswer, ForecastAnswer
from web.auth import actor
from web.routes import Routes
from web.services import services


def add(routes: Routes) -> None:
    """Add the routes that delete and restore."""
    _add_versions(routes)
    _add_artifacts(routes)

    @routes.route("GET", "/gc", answer=ForecastAnswer)
    def forecast() -> Document:
        """Say what a garbage collection would free now, and of which project. Admins only."""
        access.require_admin(actor())
        return rules.forecast(gc.forecast(services().database))


def _add_versions(routes: Routes) -> None:
    @routes.route("DELETE", "/artifacts/<project>/<name>/versions/<selector>", status=204)
    def delete_version(project: str, name: str, selector: str) -> None:
        """Delete a version; it can be restored for a week.

        409 while a name points at it, a gate measures on it, or a job that has not ended uses it.
        """
        with services().database.transaction() as session:
            version = find_version(session, project, name, selector)
            retiring.delete_version(session, actor(), version)

    @routes.route(
        "POST",
        "/artifacts/<project>/<name>/versions/<selector>/restore",
        answer=VersionAnswer,
    )
    def restore_version(project: str, name: str, selector: str) -> Document:
        """Bring a deleted version back, by its number; 409 when the week is over."""
        with services().database.transaction() as session:
            version = _deleted(session, project, name, selector)
            retiring.restore_version(session, actor(), version)
            return queries.version_document(session, actor(), version)


def _deleted(session: Session, project: str, name: str, selector: str) -> Version:
    artifact = queries.find_artifact(session, actor(), project, name)
    number = ArtifactRef(project, name, selector).version
    mine = Version.artifact_id == artifact.id, Version.number == number
    version = session.scalar(select(Version).where(*mine))
    if version is None:
        raise NotFound(
            f"{registry.path_of(artifact)} has had no version {selector}.",
            hint=f"`GET /api/v1/projects/{project}/deleted` lists what can be restored.",
        )
    return version


def _add_artifacts(routes: Routes) -> None:
    @routes.route("DELETE", "/artifacts/<project>/<name>", status=204)
    def delete_artifact(project: str, name: str) -> None:
        """Delete an artifact with everything in it; it can be restored for a week.

        Owners and admins only; 409 while a job that has not ended uses one of its versions.
        """
        with services().database.transaction() as session:
            artifact = queries.find_artifact(session, actor(), project, name)
            retiring.delete_artifact(session, actor(), artifact)

    @routes.route("POST", "/artifacts/<project>/<name>/restore", status=204)
    def restore_artifact(project: str, name: str) -> None:
        """Bring a deleted artifact back with versions, aliases and gates; 409 after the week."""
        with services().database.transaction() as session:
            found = access.project_for(session, actor(), project)
            artifact = retiring.find_deleted(session, found, name)
            if artifact is None:
                raise NotFound(
                    f"There is no deleted artifact {project}/{name}.",
                    hint=f"`GET /api/v1/projects/{project}/deleted` lists what can be restored.",
                )
            retiring.restore_artifact(session, actor(), artifact)

    @routes.route("GET", "/projects/<project>/deleted", answer=DeletedAnswer)
    def list_deleted(project: str) -> Document:
        """List what of a project was deleted and can still be restored."""
        with services().database.reading() as session:
            return rules.deleted(session, access.project_for(session, actor(), project))
