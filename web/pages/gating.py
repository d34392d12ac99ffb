"""A gate on an alias: what an eval must have measured before it moves."""

from typing import Any

from flask import flash, redirect, render_template, request, url_for
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response as AnyResponse

from espalier.errors import EspalierError, InvalidInput
from espalier.refs import check_name
from espalier.states import ArtifactKind
from scheduler.catalog import gates, projects
from scheduler.queries import browse
from scheduler.queries.artifacts import find_artifact
from web.auth import actor
from web.pages.blueprint import pages, reading
from web.pages.faults import Wrong, wrong_fields
from web.services import services


@pages.get("/<project>/<name>/aliases/<alias>/gate")
def gate(project: str, name: str, alias: str) -> str:
    return _page(project, name, alias)


@pages.post("/<project>/<name>/aliases/<alias>/gate")
def gate_setting(project: str, name: str, alias: str) -> Any:
    """Ask for an eval from now on; the data's version is that of today."""
    form = request.form
    try:
        check_name(alias, "alias")
        with services().committing() as db:
            row = gates.set_gate(
                db,
                actor(),
                find_artifact(db, actor(), project, name),
                alias,
                data=form.get("data", "").strip(),
                metric=form.get("metric", "test_loss"),
                min_delta=_distance(form.get("min_delta", "")),
                proofs="proofs" in form,
            )
            flash(f"{alias}: {gates.words(row)}")
    except EspalierError as error:
        if error.status == 403:
            raise
        return _page(project, name, alias, wrong_fields(error, "data"), form), error.status
    return _shown(project, name)


@pages.post("/<project>/<name>/aliases/<alias>/gate/removal")
def gate_removal(project: str, name: str, alias: str) -> AnyResponse:
    """Ask nothing of the alias any more."""
    with services().committing() as db:
        gates.remove_gate(db, actor(), find_artifact(db, actor(), project, name), alias)
    flash(f"{alias} moves to any version now.")
    return _shown(project, name)


def _distance(text: str) -> float:
    try:
        return float(text.strip() or 0)
    except ValueError as error:
        told = f"must be a number, 0 or more (got {text!r:.60})"
        fault = {"loc": ["min_delta"], "msg": told}
        raise InvalidInput(f"The distance {told}.", errors=[fault]) from error


def _shown(project: str, name: str) -> AnyResponse:
    return redirect(url_for("pages.artifact", project=project, name=name, _anchor="names"), 303)


def _page(
    project: str,
    name: str,
    alias: str,
    wrong: Wrong | None = None,
    form: MultiDict[str, str] | None = None,
) -> str:
    check_name(alias, "alias")
    with reading() as db:
        found = find_artifact(db, actor(), project, name)
        row = gates.gate_on(db, found, alias)
        manages = projects.may_manage(db, actor(), found.project)
        sets = browse.names_of(db, actor(), ArtifactKind.DATASET)
        kept: dict[str, Any] = {"data": "", "metric": "test_loss", "min_delta": "0", "proofs": True}
        if row is not None:
            kept |= {"data": row.data, "metric": row.metric, "proofs": row.proofs}
            kept["min_delta"] = f"{row.min_delta:g}"
        words = gates.words(row) if row else None
    if form is not None:
        kept = {**kept, **form.to_dict(), "proofs": "proofs" in form}
    return render_template(
        "gate.html", section="Artifacts", project=project, name=name, alias=alias, words=words,
        manages=manages, form=kept, wrong=wrong or {}, metrics=gates.METRICS, sets=sets,
    )  # fmt: skip
