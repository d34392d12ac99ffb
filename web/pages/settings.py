"""A person's own settings, and those of their projects: tokens, a password, who may be paused."""

from typing import Any

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from scheduler import access
from scheduler.catalog import projects
from scheduler.models import User
from scheduler.queries.projects import list_projects
from web.auth import actor
from web.pages.blueprint import pages, reading
from web.services import services


@pages.get("/settings")
def settings() -> str:
    return _page(secret=None)


@pages.post("/settings/tokens")
def token() -> str:
    """Make a personal token; it is shown this once."""
    with services().database.transaction() as db:
        user = db.get_one(User, actor().user_id)
        name = request.form.get("name", "").strip() or "unnamed"
        secret = access.mint(db, "personal", user=user, name=name)
        access.audit(db, actor(), "token.create", name)
    url = services().settings.public_url or request.host_url.rstrip("/")
    return _page(secret=secret, url=url)


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


@pages.post("/settings/projects/<name>/preemption")
def preemption(name: str) -> AnyResponse:
    """Let a project's running jobs be paused for more urgent ones, or not."""
    with services().committing() as db:
        project = access.project_for(db, actor(), name)
        wanted = request.form.get("preemptible") == "yes"
        projects.set_preemptible(db, actor(), project, wanted)
    return redirect(url_for("pages.settings"), 303)


def _page(**context: Any) -> str:
    with reading() as db:
        tokens = access.tokens_of(db, actor().user_id or "")
        found = list_projects(db, actor())
    return render_template(
        "settings.html", section="Settings", tokens=tokens, projects=found, **context
    )
