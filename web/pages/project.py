"""A project's own page: its limits, what was deleted in it, and who is told what happens."""

from collections.abc import Callable
from typing import Any

from flask import flash, redirect, render_template, request, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from espalier.errors import EspalierError, InvalidInput
from espalier.specs.sizes import parse_size
from scheduler import access
from scheduler.bytes.gc import GRACE
from scheduler.catalog import projects, webhooks
from scheduler.catalog.projects import MAX_TTL, MIN_TTL
from scheduler.models import Project, Webhook
from scheduler.queries import rules
from scheduler.queries.projects import list_projects
from web.auth import actor
from web.pages.blueprint import pages, reading
from web.pages.faults import Wrong, wrong_fields
from web.services import services

#: Deliveries that a webhook's page shows.
SHOWN = 50


@pages.get("/settings/projects/<name>")
def project(name: str) -> str:
    return _page(name)


@pages.post("/settings/projects/<name>/limits")
def project_limits(name: str) -> Any:
    """Set the age limit, and an admin the quota; an empty field takes a limit away."""
    try:
        with services().committing() as db:
            found = access.project_for(db, actor(), name)
            projects.set_ttl(db, actor(), found, _days(request.form.get("ttl_days", "")))
            if actor().is_admin:
                quota = _bytes(request.form.get("quota_bytes", ""))
                projects.set_quota(db, actor(), found, quota)
        flash(f"The limits of {name} are set.")
    except InvalidInput as error:
        return _page(name, wrong=wrong_fields(error), form=request.form), 422
    return _back(name)


def _days(text: str) -> int | None:
    if not text.strip():
        return None
    if not text.strip().isdecimal():
        raise _refused("ttl_days", f"must be {MIN_TTL} to {MAX_TTL} days, or empty", text)
    return int(text)


def _bytes(text: str) -> int | None:
    if not text.strip():
        return None
    try:
        return int(parse_size(text))
    except ValueError as error:
        raise _refused("quota_bytes", "write bytes, 512MB or 200GB, or nothing", text) from error


def _refused(field: str, problem: str, given: str) -> InvalidInput:
    told = f"{problem} (got {given!r:.60})"
    return InvalidInput(f"{field} {told}.", errors=[{"loc": [field], "msg": told}])


# --- Webhooks -----------------------------------------------------------------------------


@pages.post("/settings/projects/<name>/webhooks")
def webhook_addition(name: str) -> Any:
    """Add an address; its secret is on the page that comes, and on no other."""
    url, events = request.form.get("url", "").strip(), request.form.getlist("events")
    try:
        made = webhooks.add(services().database, actor(), name, url, events)
    except EspalierError as error:
        wrong = wrong_fields(error, "url")
        return _page(name, wrong=wrong, form=request.form, chosen=events), error.status
    with reading() as db:
        secret = db.get_one(Webhook, made).secret
    return _page(name, secret=secret, url=url)


@pages.get("/settings/projects/<name>/webhooks/<webhook>")
def webhook_page(name: str, webhook: str) -> str:
    """What was sent to an address and is to be, newest first."""
    with reading() as db:
        hook = webhooks.find(db, actor(), access.project_for(db, actor(), name), webhook)
        sent = [rules.delivery(row) for row in webhooks.deliveries(db, hook, SHOWN)]
        told = rules.webhook(hook)
    return render_template(
        "webhook.html", section="Settings", project=name, hook=told, deliveries=sent
    )


@pages.post("/settings/projects/<name>/webhooks/<webhook>/ping")
def webhook_ping(name: str, webhook: str) -> AnyResponse:
    def ping(db: Session, found: Project) -> str:
        webhooks.ping(db, actor(), found, webhook)
        return "A ping is on its way: what came back is in the list in a moment."

    return _done(name, webhook, ping)


@pages.post("/settings/projects/<name>/webhooks/<webhook>/deliveries/<int:delivery>/again")
def webhook_again(name: str, webhook: str, delivery: int) -> AnyResponse:
    def again(db: Session, found: Project) -> str:
        webhooks.redeliver(db, actor(), found, webhook, delivery)
        return f"Delivery {delivery} is sent once more."

    return _done(name, webhook, again)


@pages.post("/settings/projects/<name>/webhooks/<webhook>/enabling")
def webhook_enabling(name: str, webhook: str) -> AnyResponse:
    def enable(db: Session, found: Project) -> str:
        webhooks.enable(db, actor(), found, webhook)
        return "It is told again what happens, from now on."

    return _done(name, webhook, enable)


@pages.post("/settings/projects/<name>/webhooks/<webhook>/removal")
def webhook_removal(name: str, webhook: str) -> AnyResponse:
    def remove(db: Session, found: Project) -> str:
        webhooks.remove(db, actor(), found, webhook)
        return "The webhook is gone, with what it was still to be sent."

    return _done(name, None, remove)


def _done(name: str, webhook: str | None, act: Callable[[Session, Project], str]) -> AnyResponse:
    """Do it in one transaction, and say what came of it where the person came from."""
    try:
        with services().database.transaction() as db:
            flash(act(db, access.project_for(db, actor(), name)))
    except EspalierError as error:
        if error.status in (403, 404):
            raise
        flash(" ".join(filter(None, (error.detail, error.hint))), "error")
    if webhook is None:
        return _back(name)
    return redirect(url_for("pages.webhook_page", name=name, webhook=webhook), 303)


# --- The page -----------------------------------------------------------------------------


def _back(name: str) -> AnyResponse:
    return redirect(url_for("pages.project", name=name), 303)


def _page(name: str, wrong: Wrong | None = None, **context: Any) -> str:
    with reading() as db:
        found = access.project_for(db, actor(), name)
        (facts,) = list_projects(db, actor(), name)
        manages = projects.may_manage(db, actor(), found)
        hooks = webhooks.webhooks_of(db, actor(), found) if manages else []
        told = [rules.webhook(hook) for hook in hooks]
        deleted = rules.deleted(db, found)
    return render_template(
        "project.html", section="Settings", project=facts, manages=manages, hooks=told,
        deleted=deleted, grace=GRACE.days, events=webhooks.EVENTS, least=MIN_TTL,
        most=MAX_TTL, wrong=wrong or {},
        **{"form": None, "chosen": webhooks.EVENTS, "secret": None, **context},
    )  # fmt: skip
