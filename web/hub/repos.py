"""Repositories: what they are, what is in them, what their revisions are called."""

from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, jsonify, request

from espalier.errors import InvalidInput
from scheduler.access import projects_of
from scheduler.bytes.blobs import Blobs
from scheduler.contents.cards import MAX_READ
from scheduler.queries import Document, history, hub, hublists, hubtree
from scheduler.queries.hublists import Wanted
from web.auth import actor
from web.services import services

_TYPE = "<any(models, datasets):kind>"
_REPO = f"/api/{_TYPE}/<project>/<name>"
#: Entries of one page of a tree, with and without what is slow to tell of each.
TREE_PAGE, EXPANDED_PAGE = 1000, 100
#: Repositories of one page of a list, with and without the names of their files.
LIST_PAGE, FULL_PAGE = 500, 50
COMMITS_PAGE = 1000
#: Paths that one question may ask for.
_MAX_PATHS = 10_000
#: Of them, those that are told with the commit that made them so.
_MAX_EXPANDED = 1000


def add(blueprint: Blueprint) -> None:
    """Add the routes of repositories."""
    blueprint.get("/api/whoami-v2")(whoami)
    blueprint.get(f"/api/{_TYPE}")(repositories)
    blueprint.get(_REPO)(info)
    blueprint.get(f"{_REPO}/revision/<path:rev>")(info)
    blueprint.get(f"{_REPO}/tree/<path:rest>")(tree)
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
        auth={"type": "access_token", "accessToken": {"displayName": "espalier", "role": "write"}},
    )


def repositories(kind: str) -> Response:
    """List repositories, a page at a time, narrowed and sorted as clients ask for it."""
    full = _flag("full")
    most = FULL_PAGE if full else LIST_PAGE
    wanted = Wanted(
        search=request.args.get("search", ""),
        author=request.args.get("author"),
        tags=[tag for name in ("filter", "tags") for tag in request.args.getlist(name)],
        sort=request.args.get("sort", "lastModified"),
        ascending=request.args.get("direction") == "1",
        full=full,
        limit=max(1, min(_number("limit", most), most)),
        cursor=request.args.get("cursor"),
    )
    with services().database.reading() as session:
        documents, cursor = hublists.repositories(session, actor(), kind, wanted)
    return _page(documents, cursor)


def info(kind: str, project: str, name: str, rev: str = hub.MAIN) -> Response:
    """A repository at a revision, with its files."""
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        version = hub.revision(session, artifact, rev)
        files = hub.files_of(session, version)
    return jsonify(hub.repo_document(artifact, version, files, _card(files)))


def _card(files: list[hub.File]) -> Document:
    readme = next((file for file in files if file.path == "README.md"), None)
    return _read_card(services().blobs, readme) if readme else {}


@lru_cache(maxsize=1024)
def _read_card(blobs: Blobs, readme: hub.File) -> Document:
    return hub.card_of(lambda sha256: blobs.open(sha256, 0, min(MAX_READ, readme.size)), [readme])


def tree(kind: str, project: str, name: str, rest: str) -> Response:
    """The entries of a folder, or of all folders; a page at a time.

    ``rest`` is the revision and, behind it, the folder.
    """
    expand = _flag("expand")
    most = EXPANDED_PAGE if expand else TREE_PAGE
    limit = max(1, min(_number("limit", most), most))
    after = request.args.get("cursor", "")
    recursive = _flag("recursive")
    listed = hubtree.everything if recursive else hubtree.children
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        version, below = hub.locate(session, artifact, rest)
        entries = listed(session, version, below, after, limit + 1)
        if expand:
            hubtree.add_last_commits(session, version, entries[:limit])
    if below and not entries and not after:
        raise hub.NoEntry(f"{project}/{name} has no folder {below!r} there.", version.commit)
    more = len(entries) > limit
    cursor = hubtree.place(entries[limit - 1], recursive=recursive) if more else None
    return _page(entries[:limit], cursor)


def paths_info(kind: str, project: str, name: str, rev: str) -> Response:
    """The entries of the paths that were asked for, those that are there."""
    given = request.get_json(silent=True) or {}
    paths = request.form.getlist("paths") or (given.get("paths", []) if given else [])
    if not isinstance(paths, list) or len(paths) > _MAX_PATHS:
        raise InvalidInput(f"paths must be a list of at most {_MAX_PATHS:,} paths.")
    expand = str(request.form.get("expand") or given.get("expand") or "").lower()
    wanted = {path.strip("/") for path in paths if isinstance(path, str)}
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        version = hub.revision(session, artifact, rev)
        found = hubtree.named(session, version, wanted)
        if expand in ("true", "1"):
            hubtree.add_last_commits(session, version, found[:_MAX_EXPANDED])
    return jsonify(found)


def refs(kind: str, project: str, name: str) -> Response:
    """Branches and tags."""
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        return jsonify(history.refs_document(session, artifact))


def commits(kind: str, project: str, name: str, rev: str) -> Response:
    """The commits of a branch up to a revision, newest first."""
    first, limit = _number("cursor", 0), COMMITS_PAGE
    formatted = "formatted" in request.args.getlist("expand[]")
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        version = hub.revision(session, artifact, rev)
        found = history.commit_documents(session, version, first, limit + 1, formatted=formatted)
    return _page(found[:limit], str(first + limit) if len(found) > limit else None)


def _flag(name: str) -> bool:
    return request.args.get(name, "").lower() in ("true", "1")


def _number(name: str, default: int) -> int:
    text = request.args.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidInput(f"{name} must be a number of at most 9 digits (got {text!r:.40}).")
    return int(text)


def _page(items: list[dict[str, Any]], cursor: str | None) -> Response:
    """Answer with the items; with a cursor there is another page."""
    response = jsonify(items)
    if cursor is not None:
        asked = [(k, v) for k, v in request.args.items(multi=True) if k != "cursor"]
        query = urlencode([*asked, ("cursor", cursor)])
        response.headers["Link"] = f'<{request.base_url}?{query}>; rel="next"'
    return response
