"""The form: one job of any kind, or a train job and the steps that follow it."""

from typing import Any

from flask import redirect, render_template, request, url_for
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response as AnyResponse

from espalier.errors import EspalierError, InvalidInput, NotFound
from espalier.specs import JobRequest, PipelineRequest
from scheduler.access import projects_of
from scheduler.lifecycle import submit as actions
from scheduler.models import Job
from scheduler.queries import jobs as queries
from scheduler.queries.artifacts import list_artifacts
from scheduler.refusals.check import Remarks, check
from web.auth import actor
from web.pages.blueprint import pages, reading
from web.pages.fields import PICKS, FormField, fields_of
from web.pages.submission import AROUND, cloned, faults, filled, read, step_forms
from web.services import services


@pages.get("/submit")
def submit() -> str:
    source = request.args.get("clone")
    form: MultiDict[str, str] = MultiDict(request.args)
    if source:
        with reading() as db:
            job = queries.find_job(db, actor(), source)
            form = cloned(queries.job_document(db, job))
    return _form(form, None)


@pages.post("/submit")
def submission_created() -> AnyResponse | tuple[str, int]:
    try:
        wanted = read(request.form)
        remarks = check(services().database, services().blobs, actor(), wanted)
        with services().committing() as db:
            first = _submitted(db, wanted, remarks)
    except (InvalidInput, NotFound) as error:
        return _form(request.form, error), error.status
    return redirect(url_for("pages.job", job_id=first.id), 303)


@pages.post("/submit/filled")
def submission_filled() -> str | tuple[str, int]:
    """Fill the form in from YAML; nothing is submitted."""
    try:
        return _form(filled(request.form), None)
    except InvalidInput as error:
        return _form(request.form, error), error.status


def _submitted(db: Any, wanted: JobRequest | PipelineRequest, remarks: Remarks) -> Job:
    if isinstance(wanted, PipelineRequest):
        return actions.submit_pipeline(db, actor(), wanted, remarks)[0]
    return actions.submit(db, actor(), wanted, remarks)


def _form(form: MultiDict[str, str], error: EspalierError | None) -> str:
    wrong = faults(error, form)
    with reading() as db:
        projects = [project.name for project in projects_of(db, actor())]
        picks = {
            kind: [f"{a['project']}/{a['name']}" for a in list_artifacts(db, actor(), kind)]
            for kind in dict.fromkeys(PICKS.values())
        }
    steps = step_forms(form, wrong)
    return render_template(
        "submit.html", section="Jobs", kind=steps[0].kind, head=steps[0], following=steps[1:],
        around=_around(form, wrong), form=form, wrong=wrong, error=error, projects=projects,
        picks=picks,
    )  # fmt: skip


def _around(form: MultiDict[str, str], wrong: dict[str, str]) -> list[FormField]:
    """Return the fields of the queue: they have no step before their name."""
    every = {f.label: f for f in fields_of(JobRequest, "", _prefixed(form), _prefixed(wrong))}
    return [every[name.replace("_", " ")] for name in AROUND]


def _prefixed(given: Any) -> dict[str, str]:
    return {f".{key}": given[key] for key in given}
