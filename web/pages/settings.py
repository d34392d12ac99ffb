"""A person's own settings: tokens for the CLI and scripts, a password, and signing out."""

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from scheduler import access
from scheduler.models import Token, User
from web.auth import actor
from web.pages.blueprint import pages, reading
from web.services import services


@pages.get("/settings")
def settings() -> str:
    return render_template("settings.html", section="Settings", secret=None, tokens=_tokens())


@pages.post("/settings/tokens")
def token() -> str:
    """Make a personal token; it is shown this once."""
    with services().database.transaction() as db:
        user = db.get_one(User, actor().user_id)
        name = request.form.get("name", "").strip() or "unnamed"
        secret = access.mint(db, "personal", user=user, name=name)
        access.audit(db, actor(), "token.create", name)
    url = services().settings.public_url or request.host_url.rstrip("/")
    return render_template(
        "settings.html", section="Settings", secret=secret, url=url, tokens=_tokens()
    )


@pages.post("/settings/tokens/<token_id>/revocation")
def token_revocation(token_id: str) -> AnyResponse:
    with services().database.transaction() as db:
        access.revoke_token(db, actor(), token_id)
    return redirect(url_for("pages.settings"), 303)


@pages.post("/settings/password")
def password() -> AnyResponse:
    """Set one's password; every session ends, this one too, and the next begins with it."""
    with services().database.transaction() as db:
        user = db.get_one(User, actor().user_id)
        access.set_password(db, user, request.form.get("password", ""))
        access.audit(db, actor(), "user.password", user.name)
    return redirect(url_for("auth.login"), 303)


def _tokens() -> list[Token]:
    with reading() as db:
        return access.tokens_of(db, actor().user_id or "")
