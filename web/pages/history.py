"""An artifact's versions over time, and what people do about them: point, go back, throw away.

What is refused is said on the page it was asked on.
"""

from collections.abc import Callable

from flask import flash, redirect, render_template, request, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from espalier.errors import EspalierError, NotFound
from espalier.refs import ArtifactRef
from scheduler.catalog import aliases, registry, retiring
from scheduler.models import Artifact, Version
from scheduler.queries import versions
from scheduler.queries.artifacts import find_artifact
from web.auth import actor
from web.pages.artifacts import found_version
from web.pages.blueprint import pages, reading
from web.services import services


@pages.get("/<project>/<name>/versions")
def history(project: str, name: str) -> str:
    """Every version, newest first, and every move of an alias, a branch or a tag."""
    before = request.args.get("before", type=int)
    with reading() as db:
        found = find_artifact(db, actor(), project, name)
        head = registry.head(db, found)
        listed = versions.history(db, actor(), found, before)
        moves = versions.moves(db, found, request.args.get("alias") or None)
        kind = found.kind
    following = listed[-1]["number"] if len(listed) == versions.VERSIONS else None
    return render_template(
        "versions.html", section="Artifacts", project=project, name=name, kind=kind,
        versions=listed, moves=moves, before=before, following=following,
        head=head.number if head else None, alias=request.args.get("alias"),
    )  # fmt: skip


# --- Names --------------------------------------------------------------------------------


@pages.post("/<project>/<name>/aliases")
def alias(project: str, name: str) -> AnyResponse:
    """Point an alias at a version, if its gate lets it."""
    wanted, chosen = request.form["alias"].strip(), request.form["version"]

    def point(db: Session) -> str:
        found, version = found_version(db, ArtifactRef(project, name, chosen))
        aliases.set_alias(db, actor(), found, wanted, version)
        return f"{wanted} points at v{version.number}."

    return _done(project, name, chosen, point)


@pages.post("/<project>/<name>/aliases/<alias>/rollback")
def rollback(project: str, name: str, alias: str) -> AnyResponse:
    """Point an alias at what it pointed at before."""

    def back(db: Session) -> str:
        found = find_artifact(db, actor(), project, name)
        row = aliases.rollback(db, actor(), found, alias)
        return f"{alias} is back at v{row.version.number}."

    return _done(project, name, request.form.get("version"), back)


@pages.post("/<project>/<name>/aliases/<alias>/removal")
def alias_removal(project: str, name: str, alias: str) -> AnyResponse:
    """Take an alias away; the version stays."""

    def remove(db: Session) -> str:
        aliases.remove_alias(db, actor(), find_artifact(db, actor(), project, name), alias)
        return f"{alias} is gone; the version it pointed at stays."

    return _done(project, name, request.form.get("version"), remove)


def _done(
    project: str, name: str, selector: str | None, act: Callable[[Session], str]
) -> AnyResponse:
    """Do it in one transaction; say on the version's page what came of it."""
    try:
        with services().committing() as db:
            told = act(db)
        flash(told)
    except NotFound:
        raise
    except EspalierError as error:
        flash(" ".join(filter(None, (error.detail, error.hint))), "error")
    shown = selector.removeprefix("v") if selector else registry.MAIN
    where = url_for("pages.version", project=project, name=name, selector=shown)
    return redirect(where, 303)


# --- Thrown away and brought back ---------------------------------------------------------


@pages.get("/<project>/<name>/deletion")
@pages.get("/<project>/<name>/v/<selector>/deletion")
def deletion(project: str, name: str, selector: str | None = None) -> str:
    """Ask once more, and say what it means: the one way that needs no script."""
    with reading() as db:
        _, chosen = found_version(db, ArtifactRef(project, name, selector))
        facts = versions.facts(db, actor(), chosen)
    return render_template(
        "deletion.html", section="Artifacts", version=facts, whole=selector is None
    )


@pages.post("/<project>/<name>/deletion")
def artifact_deletion(project: str, name: str) -> AnyResponse:
    """Hide an artifact with all its versions; within the grace it can be brought back."""

    def delete(db: Session) -> str:
        found = find_artifact(db, actor(), project, name)
        retiring.delete_artifact(db, actor(), found)
        return f"{project}/{name} was deleted. Its page brings it back."

    return _thrown(url_for("pages.artifact", project=project, name=name), delete)


@pages.post("/<project>/<name>/v/<selector>/deletion")
def version_deletion(project: str, name: str, selector: str) -> AnyResponse:
    """Hide a version; within the grace it can be brought back."""

    def delete(db: Session) -> str:
        _, chosen = found_version(db, ArtifactRef(project, name, selector))
        retiring.delete_version(db, actor(), chosen)
        return f"{registry.label(chosen)} was deleted. Below it can be brought back."

    return _thrown(url_for("pages.history", project=project, name=name), delete)


@pages.post("/<project>/<name>/restoration")
def artifact_restoration(project: str, name: str) -> AnyResponse:
    """Bring a deleted artifact back, as it was."""

    def restore(db: Session) -> str:
        found = _deleted(db, ArtifactRef(project, name))[0]
        retiring.restore_artifact(db, actor(), found)
        return f"{project}/{name} is back."

    return _thrown(url_for("pages.artifact", project=project, name=name), restore)


@pages.post("/<project>/<name>/v/<int:number>/restoration")
def version_restoration(project: str, name: str, number: int) -> AnyResponse:
    """Bring a deleted version back."""

    def restore(db: Session) -> str:
        chosen = _deleted(db, ArtifactRef(project, name, f"v{number}"))[1]
        retiring.restore_version(db, actor(), chosen)
        return f"{registry.label(chosen)} is back."

    return _thrown(url_for("pages.history", project=project, name=name), restore)


def _deleted(db: Session, ref: ArtifactRef) -> tuple[Artifact, Version]:
    """Return what was deleted, of what the person sees. Raises NotFound."""
    found = versions.deleted_row(db, actor(), ref)
    if found is None:
        raise NotFound(f"{ref} is not among what was deleted.")
    return found


def _thrown(where: str, act: Callable[[Session], str]) -> AnyResponse:
    """Do it; what is refused is said where the person came from."""
    try:
        with services().database.transaction() as db:
            flash(act(db))
    except NotFound:
        raise
    except EspalierError as error:
        flash(" ".join(filter(None, (error.detail, error.hint))), "error")
        where = request.referrer if _is_ours(request.referrer) else where
    return redirect(where, 303)


def _is_ours(address: str | None) -> bool:
    return address is not None and address.startswith(request.host_url)
