"""What this server has not, from the hub behind it: the same addresses, answered by the mirror.

A repository whose first name is no project of ours is looked for there. A project's name never
goes upstream, and neither does anybody's token but this server's own.
"""

from typing import Any
from urllib.parse import quote

from flask import Response, jsonify, request
from sqlalchemy import select

from espalier.refs import check_path
from scheduler.models import Project
from scheduler.queries import hub
from web.downloads import send_range
from web.mirror import Mirror
from web.services import services


def elsewhere() -> Response | None:
    """Answer a request for a repository that is not ours; None for one that is."""
    wanted = request.view_args or {}
    project = wanted.get("project")
    if project is None or _is_ours(project):
        return None
    repo, rev = f"{project}/{wanted['name']}", wanted.get("rev", hub.MAIN)
    for inner in ("rev", "path", "below"):  # nothing may climb out of the repository upstream
        if inner in wanted:
            check_path(wanted[inner])
    if "path" in wanted:
        kind = "datasets" if str(request.endpoint).endswith("dataset_file") else "models"
        return _file(kind, repo, rev, wanted["path"])
    if request.method == "POST":
        return _paths_info(wanted["kind"], repo, rev)
    return _document(wanted["kind"], repo, wanted.get("rev"))


def _is_ours(project: str) -> bool:
    with services().database.reading() as session:
        return session.scalar(select(Project.id).where(Project.name == project)) is not None


def _mirror() -> Mirror:
    return services().mirror


def _document(kind: str, repo: str, rev: str | None) -> Response:
    query = request.query_string.decode()
    path = request.path + (f"?{query}" if query else "")
    told = _mirror().document(kind, repo, rev, path)
    response = jsonify(told.body)
    if told.next:
        root = request.host_url.rstrip("/")
        response.headers["Link"] = f'<{root}{told.next}>; rel="next"'
    return response


def _paths_info(kind: str, repo: str, rev: str) -> Response:
    """Answer from the whole tree, which is kept: the question itself could not be asked again."""
    paths = set(request.form.getlist("paths"))
    found: list[dict[str, Any]] = []
    path: str | None = f"/api/{kind}/{repo}/tree/{quote(rev, safe='')}?recursive=true"
    while path:
        told = _mirror().document(kind, repo, rev, path)
        found += [entry for entry in told.body if entry.get("path") in paths]
        path = told.next
    return jsonify(found)


def _file(kind: str, repo: str, rev: str, path: str) -> Response:
    remote = _mirror().file(kind, repo, rev, path)
    opened = None if request.method == "HEAD" else _mirror().open(remote)
    response = send_range(opened, remote.size, remote.etag, path.rsplit("/", 1)[-1])
    response.headers["X-Repo-Commit"] = remote.commit
    if len(remote.etag) == 64:  # a sha256: the file is one of git's large ones
        response.headers["X-Linked-Etag"] = f'"{remote.etag}"'
        response.headers["X-Linked-Size"] = str(remote.size)
    return response
