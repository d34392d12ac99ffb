"""What this server has not, from the hub behind it: the same addresses, answered by the mirror.

A repository whose first name is no project of ours is looked for there; it can be read, not
written. A project's name never goes upstream, and neither does anybody's token.
"""

from typing import Any
from urllib.parse import quote, unquote, urlsplit

from flask import Response, jsonify, request
from sqlalchemy import func, select

from espalier.errors import NotFound
from espalier.refs import check_path
from scheduler.models import Project
from scheduler.queries.upstream import readers_behind
from web.auth import actor
from web.downloads import send_range
from web.services import services

#: What is asked of a repository by GET, as its address says it.
_DOCUMENTS = frozenset({"info", "tree", "refs", "commits"})


def elsewhere() -> Response | None:
    """Answer a request for a repository that is not ours; None for one that is."""
    wanted = request.view_args or {}
    project = wanted.get("project")
    if project is None or _is_ours(project):
        return None
    repo = f"{project}/{wanted['name']}"
    name = str(request.endpoint).rpartition(".")[2]
    after = _segments()
    if name in ("model_file", "dataset_file"):
        rev, path = map(check_path, _revision_and_path(after))  # none may climb out upstream
        return _file("datasets" if name == "dataset_file" else "models", repo, rev, path)
    if name == "paths_info":
        return _paths_info(wanted["kind"], repo, check_path("/".join(after)))
    if name in _DOCUMENTS:
        return _document(wanted["kind"], repo, after)
    raise NotFound(
        f"There is no project {project!r} here to write to.",
        hint="Repositories of the hub behind this one can be read here, not written.",
    )


def _is_ours(project: str) -> bool:
    with services().database.reading() as session:
        known = select(Project.id).where(func.lower(Project.name) == project.lower())
        return session.scalar(known) is not None


def _segments() -> list[str]:
    """Return what follows org/name and the word after it: ``main/a.txt``, in decoded segments.

    A slash in a branch's name arrives as %2F. WSGI's path has it decoded, and then nobody can tell
    where the name ends: the address as it was sent tells.
    """
    raw = request.environ.get("RAW_URI") or request.environ.get("REQUEST_URI") or ""
    sent = raw.partition("?")[0] if raw.startswith("/") else urlsplit(raw).path
    if unquote(sent) != request.path:  # a server that says it otherwise, or not at all
        sent = quote(request.path)
    parts = [unquote(part) for part in sent.lstrip("/").split("/")]
    # api/models/org/name/tree, datasets/org/name/resolve, org/name/resolve
    return parts[{"api": 5, "datasets": 4}.get(parts[0], 3) :]


def _word() -> str:
    """Return what is asked of the repository: ``tree`` of /api/models/org/name/tree/main."""
    parts = request.path.split("/")
    return parts[5] if len(parts) > 5 else ""


def _revision_and_path(after: list[str]) -> tuple[str, str]:
    """Tell them apart; of a revision that was not quoted, refs/pr/1 is one in three pieces."""
    size = 3 if after[:1] == ["refs"] else 1
    return "/".join(after[:size]), "/".join(after[size:])


def _readers(repo: str) -> set[str]:
    """Return for whom this is asked: the person, or those whose jobs the worker runs."""
    asking = actor()
    if asking.worker_id is None:
        return {asking.user_id} if asking.user_id else set()
    with services().database.reading() as session:
        return readers_behind(session, asking.worker_id, repo)


def _document(kind: str, repo: str, after: list[str]) -> Response:
    """Answer as the hub behind does; ``after`` names the revision, and in trees the folder."""
    path, rev = f"/api/{kind}/{repo}", None
    word, below = _word(), ""
    if word:
        path += f"/{word}"
    if after:
        rev, below = _revision_and_path(after) if word == "tree" else ("/".join(after), "")
        path += f"/{quote(check_path(rev), safe='')}"
    if below.strip("/"):
        path += f"/{quote(check_path(below.strip('/')))}"
    query = request.query_string.decode("ascii", "replace")
    told = services().mirror.document(
        kind, repo, rev, path + (f"?{query}" if query else ""), _readers(repo)
    )
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
        told = services().mirror.document(kind, repo, rev, path, _readers(repo))
        found += [entry for entry in told.body if entry.get("path") in paths]
        path = told.next
    return jsonify(found)


def _file(kind: str, repo: str, rev: str, path: str) -> Response:
    mirror = services().mirror
    remote = mirror.file(kind, repo, rev, path, _readers(repo))
    response = send_range(mirror.opener(remote), remote.size, remote.etag, path.rsplit("/", 1)[-1])
    response.headers["X-Repo-Commit"] = remote.commit
    if len(remote.etag) == 64:  # a sha256: the file is one of git's large ones
        response.headers["X-Linked-Etag"] = f'"{remote.etag}"'
        response.headers["X-Linked-Size"] = str(remote.size)
    return response
