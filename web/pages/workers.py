"""The Macs: what each is, what it does now, and how another one joins."""

from collections.abc import Iterator

from flask import Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from scheduler import access
from scheduler.access import Actor
from scheduler.models import User
from scheduler.placing import fleet
from scheduler.queries import Document
from scheduler.queries.pages import Pulse, jobs_on
from scheduler.queries.workers import find_worker, list_workers
from web.auth import actor
from web.live import Message, Sections, batch, stream
from web.pages.blueprint import hub, pages, reading
from web.services import services

#: A worker's state → what it means for the team, and what to do.
TOLD = {
    "away": "Not heard of lately. Is it asleep, or off the network?",
    "suspect": "It did not begin what it was given, time after time. It gets a job now and then"
    " until it begins one. Starting it anew clears this; its own log says why.",
    "draining": "It finishes what it holds and takes nothing more.",
    "idle": "Waits for work.",
}
HELD = " What it holds goes to another worker when its lease ends; back before, it goes on."


@pages.get("/workers")
def workers() -> str:
    return render_template("workers.html", section="Workers", join=None, **_fleet(actor()))


@pages.get("/workers/stream")
def workers_stream() -> Response:
    who, sections = actor(), Sections()

    def tell(pulse: Pulse) -> Iterator[Message]:
        part = render_template("_workers.html", **_fleet(who))
        yield from batch(sections.changed([("workers", part)]), str(pulse.event))

    return stream(hub(), tell)


@pages.post("/workers/<worker_id>/drain")
def drain(worker_id: str) -> AnyResponse:
    """Drain a worker, or let it work again: ``draining`` says which."""
    access.require_admin(actor())
    with services().committing() as db:
        draining = request.form.get("draining") == "yes"
        fleet.set_draining(db, actor(), find_worker(db, worker_id), draining)
    return redirect(url_for("pages.workers"), 303)


@pages.post("/workers/join-tokens")
def join_token() -> str:
    """Make a token for one Mac to join with; it is shown this once."""
    access.require_admin(actor())
    with services().database.transaction() as db:
        user = db.get_one(User, actor().user_id)
        secret = access.mint(db, "join", user=user, expires_in=access.JOIN_LIFETIME)
        access.audit(db, actor(), "worker.invite", user.name)
    url = services().settings.public_url or request.host_url.rstrip("/")
    join = f"espalier worker join {url} --token {secret}"
    minutes = int(access.JOIN_LIFETIME.total_seconds() // 60)
    return render_template(
        "workers.html", section="Workers", join=join, minutes=minutes, **_fleet(actor())
    )


def _fleet(who: Actor) -> Document:
    with reading() as db:
        found = list_workers(db, who, services().settings)
        running = jobs_on(db, who, [worker["id"] for worker in found])
    return {"workers": found, "running": running, "told": {w["id"]: _told(w) for w in found}}


def _told(worker: Document) -> str:
    held = HELD if worker["state"] == "away" and worker["busy_slots"] else ""
    return TOLD.get(worker["state"], "") + held
