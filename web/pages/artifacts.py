"""The team's store: artifacts, their versions, files, aliases and lineage."""

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from espalier.refs import ArtifactRef
from scheduler import aliases, lineage, registry
from scheduler.access import projects_of
from scheduler.models import Version
from scheduler.queries import Document
from scheduler.queries.artifacts import (
    artifact_document,
    find_artifact,
    list_artifacts,
    version_document,
)
from web.auth import actor
from web.pages.blueprint import pages, reading
from web.pages.data import preview
from web.pages.tree import tiers
from web.pages.usage import commands
from web.services import services


@pages.get("/artifacts")
def artifacts() -> str:
    kind, project = request.args.get("kind") or None, request.args.get("project") or None
    q = request.args.get("q", "").strip() or None
    with reading() as db:
        found = list_artifacts(db, actor(), kind, project, q)
        projects = [p.name for p in projects_of(db, actor())]
    return render_template(
        "artifacts.html", section="Artifacts", artifacts=found, projects=projects,
        kind=kind, project=project, q=q,
    )  # fmt: skip


@pages.get("/<project>/<name>")
def artifact(project: str, name: str) -> str:
    return _version_page(ArtifactRef(project, name))


@pages.get("/<project>/<name>/v/<selector>")
def version(project: str, name: str, selector: str) -> str:
    return _version_page(ArtifactRef(project, name, selector))


@pages.post("/<project>/<name>/aliases")
def alias(project: str, name: str) -> AnyResponse:
    with services().database.transaction() as db:
        found = find_artifact(db, actor(), project, name)
        chosen = registry.resolve(db, ArtifactRef(project, name, request.form["version"]))
        aliases.set_alias(db, actor(), found, request.form["alias"].strip(), chosen)
    return redirect(url_for("pages.version", project=project, name=name, selector=chosen.number))


def _version_page(ref: ArtifactRef) -> str:
    with reading() as db:
        found = find_artifact(db, actor(), ref.project, ref.name)
        chosen = registry.resolve(db, ref)
        document = version_document(db, actor(), chosen)
        visible = {project.id for project in projects_of(db, actor())}
        context: Document = {
            "artifact": artifact_document(db, found),
            "version": document,
            "tiers": tiers(chosen, lineage.family(db, chosen), visible),
            "uses": commands(document, _base(chosen, document), request.host_url.rstrip("/")),
            "preview": preview(db, chosen, request.args.get("tokenizer") or None),
        }
    return render_template("artifact.html", section="Artifacts", **context)


def _base(version: Version, document: Document) -> str | None:
    """Return the model that an adapter belongs to: of the team's store, or of the public hub."""
    for parent in document["parents"]:
        if parent["role"] == "model":
            return str(parent["ref"])
    inputs = version.job.inputs if version.job else []
    return next((item.ref for item in inputs if item.role == "model" and item.hub_repo), None)
