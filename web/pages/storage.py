"""What the store holds, for whom, and what would go if it were swept now."""

from threading import Lock

from flask import flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from espalier.errors import Conflict, EspalierError
from espalier.figures import size
from scheduler import access
from scheduler.bytes import gc
from scheduler.queries import Document
from scheduler.queries import storage as queries
from web.api.mirror import overview
from web.auth import actor
from web.mirror import Wish
from web.pages.blueprint import pages, reading
from web.services import services

#: One sweep at a time in this process; two at once would do no harm, and twice the work.
_sweeping = Lock()


@pages.get("/storage")
def storage() -> str:
    with reading() as db:
        projects = queries.projects(db, actor())
        kinds = queries.kinds(db, actor())
        largest = queries.largest(db, actor())
        uploads = queries.uploads(db, actor())
        caches = queries.caches(db)
        totals = queries.totals(db) if actor().is_admin else None
    waste = gc.forecast(services().database) if actor().is_admin else None
    return render_template(
        "storage.html", section="Artifacts", projects=projects, kinds=kinds, largest=largest,
        uploads=uploads, caches=caches, totals=totals, waste=waste, grace=gc.GRACE.days,
        mirror=_mirror(), limits=services().blobs.driver.limits() if actor().is_admin else (),
    )  # fmt: skip


@pages.get("/storage/mirror")
def mirror() -> str:
    """The part of the page that changes while something is fetched ahead."""
    return render_template("_mirror.html", mirror=_mirror())


@pages.post("/storage/prefetch")
def prefetch() -> AnyResponse:
    """Fetch a repository of the hub behind now, before somebody waits for it."""
    repo = request.form["repo"].strip().removeprefix("hf:")
    try:
        wish = Wish(request.form.get("kind", "models"), repo)
        services().prefetcher.ask(wish, str(actor().user_id))
    except EspalierError as error:
        flash(" ".join(filter(None, (error.detail, error.hint))), "error")
    return redirect(url_for("pages.storage", _anchor="mirror"), 303)


def _mirror() -> Document:
    """Return what is kept of the hub behind; ``busy`` while something is fetched ahead."""
    found = overview(actor().user_id)
    busy = any(one["state"] in ("waiting", "running") for one in found["prefetches"])
    return {**found, "busy": busy}


@pages.post("/storage/collection")
def collection() -> AnyResponse:
    """Sweep the store now, as it is done every day anyway."""
    access.require_admin(actor())
    if not _sweeping.acquire(blocking=False):
        raise Conflict("The store is being swept.", hint="Look again in a minute.")
    try:
        found = gc.collect(services().database, services().blobs)
    finally:
        _sweeping.release()
    with services().database.transaction() as db:
        told = {"blobs": found.blobs, "bytes": found.bytes, "orphans": found.orphans}
        access.audit(db, actor(), "store.collect", "store", told)
    if found.held:
        flash("A backup is running: no blob was taken. Sweep again when it is done.", "error")
    else:
        more = f", {found.orphans} leftovers" if found.orphans else ""
        given_up = f", {found.uploads} uploads nobody went on with" if found.uploads else ""
        flash(f"Freed {size(found.bytes)}: {found.blobs} blobs{given_up}{more}.")
    return redirect(url_for("pages.storage"), 303)
