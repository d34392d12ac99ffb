"""Errors as answers: RFC 9457 problems for programs, a page for people."""

import errno
import logging
import shutil

from flask import Flask, Response, current_app, jsonify, render_template, request
from markupsafe import escape
from pydantic import ValidationError
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from espalier.errors import (
    EspalierError,
    InvalidInput,
    NotFound,
    StorageFull,
    TooLarge,
    Unavailable,
)
from espalier.specs import invalid

log = logging.getLogger(__name__)

#: Seconds until what is away may be back, where nobody knows better.
RETRY_AFTER = 5.0
#: PostgreSQL's code for a full disk; SQLite says it in words.
_PG_FULL = "53100"
#: Paths that programs speak to, whatever they accept.
_PROGRAMS = ("/api/", "/agent/", "/v1/", "/healthz", "/readyz", "/metrics")


def register(app: Flask) -> None:
    """Answer every error of the app in one form."""
    app.register_error_handler(EspalierError, answer)
    app.register_error_handler(ValidationError, lambda error: answer(invalid(error)))
    app.register_error_handler(HTTPException, _http)
    for away in (OperationalError, InterfaceError, PoolTimeout, PendingRollbackError):
        app.register_error_handler(away, _database_away)
    app.register_error_handler(DBAPIError, _database_error)
    app.register_error_handler(DataError, _not_storable)
    app.register_error_handler(OSError, _os_error)
    app.register_error_handler(Exception, _unexpected)


def answer(error: EspalierError) -> Response:
    """Return the error as a problem document or, to a browser, as a page."""
    response = _problem(error) if _is_program() else _page(error)
    response.status_code = error.status
    if error.status == 401 and request.path.startswith(("/api/", "/agent/", "/v1/")):
        response.headers["WWW-Authenticate"] = 'Bearer realm="espalier"'
    wait = error.retry_after
    if wait is None and isinstance(error, Unavailable):
        wait = RETRY_AFTER
    if wait is not None:
        response.headers["Retry-After"] = str(max(1, round(wait)))
    return response


def _problem(error: EspalierError) -> Response:
    response = jsonify(error.problem())
    response.mimetype = "application/problem+json"
    return response


def _page(error: EspalierError) -> Response:
    try:
        html = render_template("error.html", problem=error.problem())
    except Exception:  # whatever broke the page must not break the page that says so
        log.exception("The error page failed")
        title, text = escape(error.title), escape(error.detail)
        html = f"<!doctype html><title>{title}</title><h1>{title}</h1><p>{text}</p>"
    return Response(html, mimetype="text/html")


def _is_program() -> bool:
    accepted = request.accept_mimetypes
    return request.path.startswith(_PROGRAMS) or (
        accepted.best_match(["text/html", "application/json"]) == "application/json"
        and not accepted.accept_html
    )


def _http(error: HTTPException) -> Response:
    """Flask's own refusals: no such route, wrong method, too large, a failed CSRF check."""
    if error.code is None or error.code < 400:
        return Response(response=error.get_body(), status=error.code, headers=error.get_headers())
    response = answer(_from_http(error))
    for name, value in error.get_headers():  # Allow of a 405, Content-Range of a 416
        if name.lower() != "content-type":
            response.headers[name] = value
    return response


def _from_http(error: HTTPException) -> EspalierError:
    if error.code == 404:
        return NotFound(f"There is nothing at {request.path}.")
    if error.code == 413:
        return TooLarge("The request is larger than this address takes.")
    facts = {
        "status": error.code,
        "title": error.name,
        "code": error.name.lower().replace(" ", "_"),
    }
    refusal: type[EspalierError] = type("Refused", (EspalierError,), facts)
    return refusal(error.description or error.name)


def _database_away(error: Exception) -> Response:
    cause = getattr(error, "orig", None) or error
    if "database or disk is full" in str(cause) or getattr(cause, "sqlstate", "") == _PG_FULL:
        return _disk_full(cause)
    # One line: it is no fault of this program, and everybody's requests meet it at once.
    log.warning("The database does not answer: %s", str(cause).strip() or type(cause).__name__)
    away = Unavailable("The database is away or busy.", hint="Try again in a moment.")
    away.retry_after = 2.0
    return answer(away)


def _database_error(error: DBAPIError) -> Response:
    """Whatever came over a connection that has just died is no fault of the request."""
    return _database_away(error) if error.connection_invalidated else _unexpected(error)


def _not_storable(error: Exception) -> Response:
    log.info("The database refused a value: %s", error)
    return answer(InvalidInput("A value cannot be stored: too large, or not text."))


def _os_error(error: OSError) -> Response:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return _disk_full(error) if full else _unexpected(error)


def _disk_full(error: Exception) -> Response:
    """No room for what was asked for: nothing of it was kept, and it may be asked again."""
    log.warning("No room: %s", error)
    home = current_app.extensions["espalier"].settings.home
    left = shutil.disk_usage(home).free
    full = StorageFull(
        f"The control plane's disk is full: {left} bytes are left in its data directory.",
        hint="Make room there, then try again: nothing of this request was kept.",
    )
    full.retry_after = 10.0
    return answer(full)


def _unexpected(error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return answer(EspalierError("Something went wrong here. It is in the server's log."))
