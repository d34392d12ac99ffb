"""Files of repositories, by name: what every client's download ends at."""

from flask import Blueprint, Response

from espalier.refs import check_path
from scheduler.queries import hub
from web.auth import actor
from web.downloads import send_blob
from web.services import services


def add(blueprint: Blueprint) -> None:
    """Add the routes of files; HEAD comes with GET."""
    rule = "<project>/<name>/resolve/<path:rest>"
    blueprint.get(f"/{rule}", endpoint="model_file")(model_file)
    blueprint.get(f"/datasets/{rule}", endpoint="dataset_file")(dataset_file)


def model_file(project: str, name: str, rest: str) -> Response:
    """A file of a model, an adapter or a GGUF artifact; ``rest`` is revision and path."""
    return _resolve("models", project, name, rest)


def dataset_file(project: str, name: str, rest: str) -> Response:
    """A file of a data set; ``rest`` is revision and path."""
    return _resolve("datasets", project, name, rest)


def _resolve(kind: str, project: str, name: str, rest: str) -> Response:
    """Answer with the file, or the range of it that was asked for.

    ``X-Repo-Commit`` and ``ETag`` name revision and bytes in the client's cache.
    """
    check_path(rest)
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        version, path = hub.locate(session, artifact, rest)
        file = hub.file_of(session, version, path)
    name = path.rsplit("/", 1)[-1]
    response = send_blob(file.sha256, file.size, name, etag=file.etag, elsewhere=True)
    response.headers["X-Repo-Commit"] = version.commit
    if file.is_large:
        response.headers["X-Linked-Etag"] = f'"{file.etag}"'
        response.headers["X-Linked-Size"] = str(file.size)
    return response
