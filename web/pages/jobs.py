"""The list of jobs: filters in the URL, pipelines together, rows that live."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from flask import Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from scheduler.access import Actor, projects_of
from scheduler.queries import Document
from scheduler.queries.jobs import JobFilters, count_jobs, list_jobs
from scheduler.queries.pages import Pulse
from web.auth import actor
from web.live import Message, Sections, batch, stream
from web.pages.blueprint import hub, pages, reading


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs shown together: those of a pipeline in the order of its steps, or one job alone."""

    pipeline: str | None
    title: str
    jobs: tuple[Document, ...]


@pages.get("/")
def home() -> AnyResponse:
    return redirect(url_for("pages.jobs"))


@pages.get("/jobs")
def jobs() -> str:
    with reading() as db:
        projects = [project.name for project in projects_of(db, actor())]
    context = _listing(actor(), _filters(), request.args.get("before"))
    return render_template("jobs.html", section="Jobs", projects=projects, **context)


@pages.get("/jobs/stream")
def jobs_stream() -> Response:
    who, wanted, before = actor(), _filters(), request.args.get("before")
    sections = Sections()

    def tell(pulse: Pulse) -> Iterator[Message]:
        context = _listing(who, wanted, before)
        parts = {name: render_template(f"_{name}.html", **context) for name in ("tabs", "jobs")}
        yield from batch(sections.changed(parts.items()), str(pulse.event))

    return stream(hub(), tell)


def _filters() -> JobFilters:
    args = request.args
    return JobFilters(
        state=tuple(filter(None, args.getlist("state"))),
        kind=tuple(filter(None, args.getlist("kind"))),
        project=args.get("project") or None,
        pipeline=args.get("pipeline") or None,
        q=args.get("q", "").strip() or None,
        paused=args.get("paused") == "yes" or None,
    )


def _listing(who: Actor, wanted: JobFilters, before: str | None) -> Document:
    """Return what both the page and its stream render."""
    with reading() as db:
        found = list_jobs(db, who, wanted, before=before)
        counts = count_jobs(db, who, wanted)
    return {
        "groups": list(grouped(found["jobs"])),
        "next": found["next"],
        "counts": counts,
        "wanted": wanted,
        "before": before,
    }


def grouped(found: Iterable[Document]) -> Iterator[Group]:
    """Yield the jobs, newest first, with those of a pipeline together in their own order."""
    for pipeline, members in groupby(found, key=lambda job: job["pipeline_id"] or job["id"]):
        together = tuple(members)[::-1]
        is_pipeline = len(together) > 1
        title = together[0]["note"] or together[0]["name"]
        yield Group(pipeline if is_pipeline else None, title, together)
