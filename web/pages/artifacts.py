"""The team's store: what is in it, and a version's page: card, use, lineage, names."""

import json
from contextlib import suppress
from typing import Any

from flask import redirect, render_template, request, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from espalier.errors import EspalierError, NotFound
from espalier.refs import ArtifactRef
from espalier.states import ArtifactKind
from scheduler.access import projects_of
from scheduler.catalog import aliases, gates, lineage, registry
from scheduler.models import Artifact, Version
from scheduler.queries import Document, browse, versions
from scheduler.queries.artifacts import find_artifact
from scheduler.queries.browse import Filters
from web.auth import actor
from web.pages import cards, usage
from web.pages.blueprint import pages, reading
from web.pages.data import preview
from web.pages.tree import picture
from web.services import services

#: Bytes of a config that is read to know how a model is loaded.
_CONFIG = 1 << 20
#: Versions that stand beside a version; the others are one link away.
_BESIDE = 8
#: Files that its page names, of those in the first folder.
_FILES = 8


@pages.get("/artifacts")
def artifacts() -> str:
    asked = request.args
    filters = Filters(
        q=asked.get("q", "").strip() or None,
        kind=asked.get("kind") or None,
        project=asked.get("project") or None,
        alias=asked.get("alias") or None,
        made=asked.get("made") or None,
        deleted=asked.get("deleted") == "yes",
        sort=asked.get("sort") or "changed",
    )
    number = max(1, asked.get("page", 1, type=int))
    with reading() as db:
        counts = browse.counts(db, actor(), filters)
        context: Document = {
            "artifacts": browse.page(db, actor(), filters, number),
            "names": browse.alias_names(db, actor()),
            "projects": [p.name for p in projects_of(db, actor())],
        }
    total = counts.get(filters.kind, 0) if filters.kind else sum(counts.values())
    own = context["projects"]
    return render_template(
        "artifacts.html", section="Artifacts", filters=filters, counts=counts, total=total,
        number=number, last=max(1, -(-total // browse.PAGE)), kinds=list(ArtifactKind),
        pushes=usage.pushing(own[0] if own else "team", endpoint()), **context,
    )  # fmt: skip


@pages.get("/<project>/<name>")
def artifact(project: str, name: str) -> str | AnyResponse:
    return _version_page(ArtifactRef(project, name))


@pages.get("/<project>/<name>/v/<selector>")
def version(project: str, name: str, selector: str) -> str | AnyResponse:
    return _version_page(ArtifactRef(project, name, selector))


@pages.get("/<project>/<name>/commit/<selector>")
@pages.get("/<project>/<name>/tree/<selector>")
@pages.get("/datasets/<project>/<name>")
@pages.get("/datasets/<project>/<name>/commit/<selector>")
@pages.get("/datasets/<project>/<name>/tree/<selector>")
def elsewhere(project: str, name: str, selector: str = registry.MAIN) -> AnyResponse:
    """Where the hub's clients say that something is: they print these addresses."""
    return redirect(url_for("pages.version", project=project, name=name, selector=selector))


def endpoint() -> str:
    """Return the address by which other machines reach this server."""
    return services().settings.public_url or request.host_url.rstrip("/")


def found_version(db: Session, ref: ArtifactRef) -> tuple[Artifact, Version]:
    """Return an artifact that the person sees, and the version. Raises NotFound."""
    found = find_artifact(db, actor(), ref.project, ref.name)
    chosen = registry.resolve(db, ArtifactRef(found.project.name, found.name, ref.selector))
    return found, chosen


def start_of(sha256: str, length: int) -> bytes:
    """Return the first bytes of a blob."""
    return b"".join(services().blobs.open(sha256, 0, length)) if length else b""


# --- A version's page ---------------------------------------------------------------------


def _version_page(ref: ArtifactRef) -> str | AnyResponse:
    with reading() as db:
        try:
            found, chosen = found_version(db, ref)
        except NotFound:
            gone = versions.deleted_version(db, actor(), ref)
            if gone is None:
                raise
            return render_template("gone.html", section="Artifacts", gone=gone), 404  # type: ignore[return-value]
        if (found.project.name, found.name) != (ref.project, ref.name):  # it was moved
            return redirect(request.full_path.replace(ref.path, registry.path_of(found), 1))
        context = _context(db, found, chosen)
    return render_template("artifact.html", section="Artifacts", **context)


def _context(db: Session, found: Artifact, chosen: Version) -> Document:
    facts = versions.facts(db, actor(), chosen)
    telling = versions.telling_files(db, chosen)
    visible = {project.id for project in projects_of(db, actor())}
    family = lineage.family(db, chosen)
    relatives = [r.version for r in (*family.ancestors, *family.descendants)]
    makers = lineage.makers(db, [chosen, *relatives], visible)
    beside = versions.history(db, actor(), found)
    return {
        "version": facts,
        "card": _card(facts, telling),
        "files": list(telling.items())[:_FILES],
        "picture": picture(chosen, family, makers, visible),
        "maker": makers.get(chosen.id),
        "uses": usage.by_tool(_uses(db, found, chosen, facts, telling, family)),
        "preview": preview(db, chosen, request.args.get("tokenizer") or None),
        "beside": [v for v in beside if not v["deleted_at"]][:_BESIDE],
        "more": len(beside) > _BESIDE,
        "aliases": _aliases(db, found),
    }


def _aliases(db: Session, found: Artifact) -> list[Document]:
    """Return the names of the artifact's versions, with what each asks and where it was before."""
    asked = {gate.alias: gates.words(gate) for gate in gates.gates_of(db, found)}
    listed = versions.names(db, found)
    for entry in listed:
        back = aliases.before(db, found, entry["name"]) if entry["kind"] == "alias" else None
        entry["before"] = back.number if back else None
        entry["gate"] = asked.pop(entry["name"], None)
    return listed + [
        {"name": name, "kind": "alias", "number": None, "before": None, "gate": gate}
        for name, gate in asked.items()
    ]


def _card(facts: Document, telling: dict[str, tuple[str, int]]) -> cards.Card | None:
    if "README.md" not in telling:
        return None
    sha256, size = telling["README.md"]
    first = url_for(
        "pages.files", project=facts["project"], name=facts["name"], selector=facts["number"]
    )
    return cards.card(start_of(sha256, min(size, cards.MOST)), first, size)


def _uses(
    db: Session,
    found: Artifact,
    chosen: Version,
    facts: Document,
    telling: dict[str, tuple[str, int]],
    family: lineage.Family,
) -> list[usage.Use]:
    head = registry.head(db, found)
    subject = usage.Subject(
        project=facts["project"],
        name=facts["name"],
        kind=facts["kind"],
        number=facts["number"],
        paths=list(telling),
        endpoint=endpoint(),
        base=_base(chosen, family),
        is_head=head is chosen,
        is_quantized=usage.is_quantized(_config(telling)),
        incomplete=chosen.meta.get("incomplete"),
    )
    return usage.commands(subject)


def _config(telling: dict[str, tuple[str, int]]) -> dict[str, Any]:
    sha256, size = telling.get("config.json", ("", 0))
    if not 0 < size <= _CONFIG:
        return {}
    with suppress(ValueError, RecursionError, EspalierError):
        value = json.loads(start_of(sha256, size))
        return value if isinstance(value, dict) else {}
    return {}


def _base(version: Version, family: lineage.Family) -> str | None:
    """Return the model that an adapter belongs to: of the team's store, or of the public hub."""
    for relative in family.ancestors:
        if relative.depth == 1 and relative.role == "model":
            return registry.label(relative.version)
    inputs = version.job.inputs if version.job else []
    return next((item.ref for item in inputs if item.role == "model" and item.hub_repo), None)
