"""Who asks: a session cookie for pages, a Bearer token for programs.

Signing in by link takes two steps, as a GET has no effects: mail scanners and link previews that
open the link do not use it up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, g, redirect, render_template, request, session, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from espalier.errors import EspalierError, Unauthorized
from scheduler import access
from scheduler.access import Actor, TokenKind
from scheduler.models import Token, User
from web.services import REFUSALS, SIGN_INS, services

blueprint = Blueprint("auth", __name__)


def actor() -> Actor:
    """Return who makes this request. Raises Unauthorized."""
    found: Actor | None = g.get("actor")
    if found is None:
        raise Unauthorized("Sign in first.", hint="Open the login link, or send a token.")
    return found


# --- Before a request: one of these per blueprint ----------------------------------------


def require_person() -> Response | None:
    """For pages: the session's user, or off to the login page."""
    if _load_session():
        return None
    wanted = request.full_path if request.method == "GET" else url_for("auth.login")
    return redirect(url_for("auth.login", next=wanted.removesuffix("?")))


def require_token() -> None:
    """For ``/api/v1``: a personal token; reading also with a session (links on pages)."""
    reading = request.method in ("GET", "HEAD")
    if reading and "Authorization" not in request.headers and _load_session():
        return
    token = _bearer("personal")
    assert token.user is not None
    g.actor = access.actor_for(token.user)
    if access.use_is_stale(token):
        with services().database.transaction() as db:
            access.touch(db, token.id)


def require_worker() -> None:
    """For ``/agent/v1``: a worker's token; ``g.worker_id`` is whose."""
    token = _bearer("worker")
    assert token.worker is not None
    g.worker_id, g.actor = token.worker.id, access.worker_actor(token.worker)


def require_reader() -> None:
    """For the hub: whoever may use ``/api/v1``, and workers, whose inputs come from there."""
    if g.get("actor") is None and _is_worker():
        return require_worker()
    return require_token()


def _is_worker() -> bool:
    try:
        with services().database.reading() as db:
            access.authenticate(db, bearer(), "worker")
    except Unauthorized:
        return False
    return True


def bearer() -> str:
    """Return the request's token. Raises Unauthorized."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthorized(
            "No token was sent.", hint="Send `Authorization: Bearer hf_…` (ESPALIER_TOKEN)."
        )
    return secret.strip()


@contextmanager
def counting_refusals() -> Iterator[None]:
    """Count a refused token against the address it came from; good ones are never slowed."""
    try:
        yield
    except Unauthorized:
        services().throttle.count("token", REFUSALS)
        raise


def _bearer(kind: TokenKind) -> Token:
    with counting_refusals(), services().database.reading() as db:
        token = access.authenticate(db, bearer(), kind)
        db.expunge_all()
        return token


def _load_session() -> bool:
    secret = session.get("token")
    if not isinstance(secret, str):
        return False
    try:
        with services().database.reading() as db:
            token = access.authenticate(db, secret, "session")
            assert token.user is not None
            g.actor = access.actor_for(token.user)
    except Unauthorized:
        session.clear()
        return False
    return True


# --- Signing in and out -------------------------------------------------------------------


@blueprint.get("/login")
def login() -> Any:
    """Show the form: a button when the link brought a token, else name and password."""
    return _form(request.args.get("token", ""), None), 200


@blueprint.post("/login")
def sign_in() -> Any:
    """Begin a session with a login link's token, or a name and password."""
    services().throttle.count("sign-in", SIGN_INS)
    try:
        with services().database.transaction() as db:
            user = _user(db)
            access.forget_expired(db, user)
            secret = access.mint(db, "session", user=user, expires_in=access.SESSION_LIFETIME)
            access.audit(db, access.actor_for(user), "session.begin", user.name)
    except Unauthorized as error:
        return _form("", error), error.status
    session.clear()
    session["token"] = secret
    session.permanent = True
    return redirect(_local(request.form.get("next", "")))


@blueprint.post("/logout")
def sign_out() -> Any:
    """End this session, here and on the server."""
    secret = session.get("token")
    if isinstance(secret, str):
        with services().database.transaction() as db:
            access.sign_out(db, secret)
    session.clear()
    return redirect(url_for("auth.login"))


def _user(db: Session) -> User:
    link = request.form.get("token", "")
    if link:
        token = access.redeem(db, link, "login")
        assert token.user is not None
        return token.user
    name, password = request.form.get("name", ""), request.form.get("password", "")
    return access.check_password(db, name, password)


def _form(token: str, error: EspalierError | None) -> str:
    wanted = request.values.get("next", "")
    return render_template("login.html", token=token, next=_local(wanted), error=error)


def _local(target: str) -> str:
    """Return ``target`` if it is a path on this server, else the first page."""
    parts = urlsplit(target)
    plain = target.startswith("/") and not target.startswith(("//", "/\\"))
    if plain and not parts.scheme and not parts.netloc and target.isprintable():
        return target
    return "/"
