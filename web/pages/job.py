"""One job: its head, its story, its curves, its log, and what it made."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flask import Response, redirect, render_template, request, url_for
from pydantic import TypeAdapter
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from espalier.commandline import command
from espalier.mlxlm import by_hand
from espalier.specs import Spec, TrainSpec
from espalier.states import JOB_ENDED, JobState
from scheduler.lifecycle import requests as actions
from scheduler.models import Job
from scheduler.queries import Document
from scheduler.queries import jobs as queries
from scheduler.queries.pages import Pulse, step_times, story
from web.auth import actor
from web.live import Message, Sections, batch, named, stream
from web.pages.attempts import spent, tries
from web.pages.blueprint import hub, pages, reading
from web.pages.charts import loss_plot, sampled
from web.pages.facts import facts, notice, remaining
from web.services import services

#: Bytes of log that the page begins with.
TAIL = 64 << 10
#: The parts of the page that live.
PARTS = ("job_head", "job_chain", "job_results", "job_attempts", "job_story")
_SPEC: TypeAdapter[Spec] = TypeAdapter(Spec)


@dataclass(frozen=True, slots=True)
class Cursor:
    """What a browser has seen: event, step of the curves, attempt and byte of the log."""

    event: int = 0
    step: int = -1
    attempt: str = ""
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.event}.{self.step}.{self.attempt}.{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return the cursor that ``str`` wrote; anything else is one that has seen nothing."""
        match text.split("."):
            case [event, step, attempt, offset] if event.isdigit() and offset.isdigit():
                known = int(step) if step.lstrip("-").isdigit() else -1
                return cls(int(event), known, attempt, int(offset))
        return cls()


@pages.get("/jobs/<job_id>")
def job(job_id: str) -> str:
    attempt = request.args.get("attempt")
    with reading() as db:
        found = queries.find_job(db, actor(), job_id)
        context = _context(db, found)
        log = _tail(db, found, attempt)
        points = sampled(queries.metrics_points(db, found))
        event = queries.latest_event_id(db, found)
    step = points[-1]["step"] if points else -1
    seen = Cursor(event, step, log["attempt"] or "", log["next_offset"])
    return render_template(
        "job.html", section="Jobs", log=log, pinned=attempt, points=points, seen=str(seen),
        plot=loss_plot(points), spec_command=_command(context["job"]),
        by_hand=_by_hand(context["job"]), **context,
    )  # fmt: skip


@pages.get("/jobs/<job_id>/log")
def job_log(job_id: str) -> Response:
    """The whole log as plain text."""
    with reading() as db:
        found = queries.find_job(db, actor(), job_id)
        log = queries.log_text(db, found, request.args.get("attempt"), 0, 1 << 30)
    return Response(log["text"], content_type="text/plain; charset=utf-8")


@pages.post("/jobs/<job_id>/cancellation")
def job_cancellation(job_id: str) -> AnyResponse:
    with services().committing() as db:
        actions.cancel(db, actor(), queries.find_job(db, actor(), job_id))
    return redirect(url_for("pages.job", job_id=job_id), 303)


@pages.post("/jobs/<job_id>/pause")
def job_pause(job_id: str) -> AnyResponse:
    """Hold a job back, or let it go on: ``paused`` says which."""
    act = actions.pause if request.form.get("paused") == "yes" else actions.resume
    with services().committing() as db:
        act(db, actor(), queries.find_job(db, actor(), job_id))
    return redirect(url_for("pages.job", job_id=job_id), 303)


@pages.post("/jobs/<job_id>/retry")
def job_retry(job_id: str) -> AnyResponse:
    with services().committing() as db:
        actions.retry(db, actor(), queries.find_job(db, actor(), job_id))
    return redirect(url_for("pages.job", job_id=job_id), 303)


@pages.get("/jobs/<job_id>/stream")
def job_stream(job_id: str) -> Response:
    seen = Cursor.parse(request.headers.get("Last-Event-ID") or request.args.get("seen", ""))
    who, sections, told = actor(), Sections(), [seen]

    def tell(pulse: Pulse) -> Iterator[Message]:
        services().watched.look(job_id)
        with reading() as db:
            found = queries.find_job(db, who, job_id)
            context = _context(db, found)
            points, log, cursor = _news(db, found, told[0])
        told[0] = cursor
        parts = {name: render_template(f"_{name}.html", **context) for name in PARTS}
        messages = [
            *([named("points", points)] if points else []),
            *([named("log", log)] if log["text"] else []),
            *sections.changed(parts.items()),
            *([named("end", found.state)] if found.state in JOB_ENDED and log["ended"] else []),
        ]
        yield from batch(messages, str(cursor))

    return stream(hub(), tell)


def _news(db: Session, job: Job, seen: Cursor) -> tuple[list[Document], Document, Cursor]:
    """Return the points and the log after the cursor, and the cursor after them.

    The last point is sent again: its validation loss may have come later. A new attempt begins a
    new log, and goes back to the step it resumed from.
    """
    last = job.attempts[-1] if job.attempts else None
    if last is not None and last.id != seen.attempt:
        step = min(seen.step, last.resumed_from_step or 0) if seen.attempt else seen.step
        seen = replace(seen, attempt=last.id, offset=0, step=step)
    points = queries.metrics_points(db, job, seen.step - 1)
    log = queries.log_text(db, job, None, seen.offset)
    step = points[-1]["step"] if points else seen.step
    event = queries.latest_event_id(db, job)
    return points, log, replace(seen, event=event, step=step, offset=log["next_offset"])


def _context(db: Session, found: Job) -> Document:
    """Return what the parts of the page are rendered from."""
    document = queries.job_document(db, found)
    running = found.state == JobState.RUNNING and found.attempts
    left = remaining(document, step_times(db, found.attempts[-1].id) if running else None)
    siblings = (
        queries.pipeline_document(db, actor(), found.pipeline_id)["jobs"]
        if found.pipeline_id
        else []
    )
    return {
        "job": document,
        "facts": facts(document, left),
        "notice": notice(document),
        "tries": tries(document),
        "spent": spent(document, services().settings),
        "story": story(db, found),
        "attempts": {attempt["id"]: attempt for attempt in document["attempts"]},
        "siblings": siblings,
        "is_open": found.state not in JOB_ENDED,
    }


def _tail(db: Session, found: Job, attempt: str | None) -> Document:
    sizes = {a.id: a.log_bytes for a in found.attempts}
    last = attempt or (found.attempts[-1].id if found.attempts else "")
    return queries.log_text(db, found, attempt, max(0, sizes.get(last, 0) - TAIL), TAIL)


def _by_hand(document: Mapping[str, Any]) -> str | None:
    """Return the command of mlx_lm.lora that does the same as a training."""
    spec = _SPEC.validate_python(document["spec"])
    if not isinstance(spec, TrainSpec):
        return None
    return by_hand(spec, services().settings.public_url or request.url_root.rstrip("/"))


def _command(document: Mapping[str, Any]) -> str:
    spec = _SPEC.validate_python(document["spec"])
    return command(spec, name=document["name"], priority=document["priority"])
