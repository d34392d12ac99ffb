"""Repositories: what they are, what is in them, what their revisions are called."""

from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, jsonify, request

from espalier.errors import InvalidInput
from scheduler.access import projects_of
from scheduler.queries import hub
from web.auth import actor
from web.services import services

_TYPE = "<any(models, datasets):kind>"
_REPO = f"/api/{_TYPE}/<project>/<name>"
#: Entries of one page of a tree, repositories of one page of a list.
TREE_PAGE = 1000
LIST_PAGE = 500
#: Paths that one question may ask for.
_MAX_PATHS = 10_000


def add(blueprint: Blueprint) -> None:
    """Add the routes of repositories."""
    blueprint.get("/api/whoami-v2")(whoami)
    blueprint.get(f"/api/{_TYPE}")(repositories)
    blueprint.get(_REPO)(info)
    blueprint.get(f"{_REPO}/revision/<path:rev>")(info)
    blueprint.get(f"{_REPO}/tree/<rev>")(tree)
    blueprint.get(f"{_REPO}/tree/<rev>/<path:below>")(tree)
    blueprint.post(f"{_REPO}/paths-info/<path:rev>")(paths_info)
    blueprint.get(f"{_REPO}/refs")(refs)
    blueprint.get(f"{_REPO}/commits/<path:rev>")(commits)


def whoami() -> Response:
    """Who the token belongs to, and the projects as organisations."""
    with services().database.reading() as session:
        projects = [project.name for project in projects_of(session, actor())]
    return jsonify(
        type="user",
        id=actor().user_id,
        name=actor().name,
        fullname=actor().name,
        email=None,
        isPro=False,
        orgs=[{"type": "org", "id": p, "name": p, "fullname": p} for p in projects],
        auth={"type": "access_token", "accessToken": {"displayName": "espalier", "role": "read"}},
    )


def repositories(kind: str) -> Response:
    """List repositories, a page at a time; ``search``, ``author`` and ``limit`` narrow it."""
    limit = min(_number("limit", LIST_PAGE), LIST_PAGE)
    offset = _number("cursor", 0)
    with services().database.reading() as session:
        found = hub.repositories(
            session,
            actor(),
            kind,
            search=request.args.get("search", ""),
            author=request.args.get("author"),
            limit=limit + 1,
            offset=offset,
        )
        documents = [hub.repo_document(artifact, version, None) for artifact, version in found]
    return _page(documents, limit, offset)


def info(kind: str, project: str, name: str, rev: str = hub.MAIN) -> Response:
    """A repository at a revision, with its files."""
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        version = hub.revision(session, artifact, rev)
        return jsonify(hub.repo_document(artifact, version, hub.files_of(session, version)))


def tree(kind: str, project: str, name: str, rev: str, below: str = "") -> Response:
    """The entries of a folder, or of all folders; a page at a time."""
    recursive = request.args.get("recursive", "").lower() in ("true", "1")
    offset = _number("cursor", 0)
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        version = hub.revision(session, artifact, rev)
        files = hub.files_of(session, version)
    entries = list(hub.tree(files, below.strip("/"), recursive=recursive))
    if below and not entries:
        raise hub.NoEntry(f"{project}/{name}@{rev} has no folder {below!r}.", version.commit)
    return _page(entries[offset : offset + TREE_PAGE + 1], TREE_PAGE, offset)


def paths_info(kind: str, project: str, name: str, rev: str) -> Response:
    """The entries of the paths that were asked for, those that are there."""
    paths = request.form.getlist("paths") or (request.get_json(silent=True) or {}).get("paths", [])
    if not isinstance(paths, list) or len(paths) > _MAX_PATHS:
        raise InvalidInput(f"paths must be a list of at most {_MAX_PATHS:,} paths.")
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        version = hub.revision(session, artifact, rev)
        wanted = {path.strip("/") for path in paths if isinstance(path, str)}
        everything = hub.files_of(session, version)
    found: list[dict[str, Any]] = [
        item for item in hub.tree(everything, "", recursive=True) if item["path"] in wanted
    ]
    return jsonify(found)


def refs(kind: str, project: str, name: str) -> Response:
    """Branches and tags."""
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        return jsonify(hub.refs_document(session, artifact))


def commits(kind: str, project: str, name: str, rev: str) -> Response:
    """The versions up to a revision, newest first."""
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        return jsonify(hub.commits(session, hub.revision(session, artifact, rev)))


def _number(name: str, default: int) -> int:
    text = request.args.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidInput(f"{name} must be a number of at most 9 digits (got {text!r:.40}).")
    return int(text)


def _page(items: list[dict[str, Any]], limit: int, offset: int) -> Response:
    """Answer with ``limit`` items; one more than that means that there is another page."""
    response = jsonify(items[:limit])
    if len(items) > limit:
        query = urlencode({**request.args, "cursor": offset + limit})
        response.headers["Link"] = f'<{request.base_url}?{query}>; rel="next"'
    return response
