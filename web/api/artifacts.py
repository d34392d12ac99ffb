"""``/api/v1``: artifacts, their versions and files."""

from flask import Response
from sqlalchemy.orm import Session

from espalier.errors import NotFound
from espalier.refs import ArtifactRef, check_name, check_path
from scheduler.catalog import publishing, registry
from scheduler.catalog.publishing import Publication
from scheduler.models import Version
from scheduler.queries import Document
from scheduler.queries import artifacts as queries
from web.api.asked import ArtifactsQuery, PublishRequest
from web.api.models import ArtifactAnswer, ArtifactsAnswer, VersionAnswer
from web.auth import actor
from web.downloads import send_blob
from web.routes import Routes
from web.services import services


def add(routes: Routes) -> None:
    """Add the routes of artifacts."""
    _add_reading(routes)
    _add_writing(routes)


def find_version(session: Session, project: str, name: str, selector: str) -> Version:
    """Return a version of an artifact the actor sees. Raises NotFound with the nearest names."""
    queries.find_artifact(session, actor(), project, name)
    check_name(selector, "version")
    return registry.resolve(session, ArtifactRef(project, name, selector))


def _add_reading(routes: Routes) -> None:
    @routes.route("GET", "/artifacts", answer=ArtifactsAnswer)
    def list_artifacts(query: ArtifactsQuery) -> Document:
        """List your projects' artifacts, last changed first."""
        with services().database.reading() as session:
            found = queries.list_artifacts(
                session, actor(), query.kind, query.project, query.q, query.limit
            )
        return {"artifacts": found}

    @routes.route("GET", "/artifacts/<project>/<name>", answer=ArtifactAnswer)
    def get_artifact(project: str, name: str) -> Document:
        """Return an artifact with its versions and aliases."""
        with services().database.reading() as session:
            artifact = queries.find_artifact(session, actor(), project, name)
            return queries.artifact_document(session, artifact)

    @routes.route("GET", "/artifacts/<project>/<name>/versions/<selector>", answer=VersionAnswer)
    def get_version(project: str, name: str, selector: str) -> Document:
        """Return a version, by number, commit, alias or `latest`, with its files and lineage."""
        with services().database.reading() as session:
            version = find_version(session, project, name, selector)
            return queries.version_document(session, actor(), version)

    @routes.route("GET", "/artifacts/<project>/<name>/versions/<selector>/files/<path:path>")
    def get_file(project: str, name: str, selector: str, path: str) -> Response:
        """Return a file's bytes. Supports Range; the ETag is its sha256."""
        check_path(path)
        with services().database.reading() as session:
            version = find_version(session, project, name, selector)
            file = next((file for file in version.files if file.path == path), None)
            if file is None:
                raise NotFound(f"{registry.label(version)} has no file {path!r}.")
        return send_blob(file.sha256, file.size, path.rsplit("/", 1)[-1])


def _add_writing(routes: Routes) -> None:
    @routes.route("POST", "/artifacts/<project>/<name>/versions", status=201, answer=VersionAnswer)
    def publish_version(project: str, name: str, body: PublishRequest) -> Document:
        """Publish uploaded files as the next version.

        Data sets are validated, models and adapters vetted, before anything is published.
        """
        store = services()
        wanted = Publication(project, name, body.kind, body.files, body.meta, body.parents)
        version_id = publishing.publish(store.database, store.blobs, actor(), wanted)
        with store.database.reading() as session:
            version = session.get_one(Version, version_id)
            return queries.version_document(session, actor(), version)
