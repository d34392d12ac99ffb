"""Refusals as the hub's clients read them: a code and a sentence in headers."""

from flask import Response, jsonify

from espalier.errors import EspalierError, NotFound, Unauthorized
from scheduler.catalog.branches import NoBranch
from scheduler.catalog.commits import NoSuchFile
from scheduler.queries.hub import NoEntry, NoRevision
from web.mirror.upstream import UpstreamRefusal

_CODES: tuple[tuple[type[EspalierError], str], ...] = (
    (NoRevision, "RevisionNotFound"),
    (NoBranch, "RevisionNotFound"),
    (NoSuchFile, "EntryNotFound"),
    (NoEntry, "EntryNotFound"),
    (NotFound, "RepoNotFound"),
)


def answer(error: EspalierError) -> Response:
    """Return the error; ``X-Error-Code`` decides which exception the client raises."""
    response = jsonify(error=error.detail)
    response.status_code = error.status
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if isinstance(error, UpstreamRefusal):
        response.status_code, code = error.http_status, error.name
    if code:
        response.headers["X-Error-Code"] = code
    hint = f" {error.hint}" if error.hint else ""
    # A header holds one line of Latin-1.
    line = " ".join(f"{error.detail}{hint}".split())
    response.headers["X-Error-Message"] = line.encode("latin-1", "replace").decode("latin-1")
    if isinstance(error, NoEntry | NoSuchFile) and error.commit:
        response.headers["X-Repo-Commit"] = error.commit
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = 'Bearer realm="espalier"'
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return response
