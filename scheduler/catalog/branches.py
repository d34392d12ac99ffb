"""Branches and tags: rows beside the aliases, in one space of names with them.

A branch points at its head and is moved by commits to it (scheduler.catalog.commits); ``main`` has
no row, every artifact has it. A tag never moves; that a version has a number is a tag as well.
"""

from sqlalchemy.orm import Session

from espalier.errors import Conflict, Forbidden, InvalidInput, NotFound
from espalier.refs import COMMIT, VERSION, check_name
from scheduler.access import Actor, audit
from scheduler.catalog.aliases import remember
from scheduler.catalog.registry import (
    ALIAS,
    BRANCH,
    LATEST,
    MAIN,
    TAG,
    changed,
    label,
    locked,
    path_of,
)
from scheduler.db import now
from scheduler.models import Alias, Artifact, Version

#: Characters of a branch's or a tag's name, with its slashes.
MAX_NAME = 96


class NoBranch(NotFound):
    """The repository is there, the branch is not."""

    code, title = "revision_not_found", "No such branch"


def check_ref_name(name: str, what: str) -> str:
    """Return a name for a branch or a tag: words as aliases are, with ``/`` between them.

    Raises InvalidInput for one that reads as something else.
    """
    if len(name) > MAX_NAME:
        raise InvalidInput(f"{name!r:.120} is longer than the {MAX_NAME} characters of a {what}.")
    for word in name.split("/"):
        check_name(word, what)
    taken = name in (LATEST, MAIN) or VERSION.fullmatch(name) or COMMIT.fullmatch(name)
    if taken or name.startswith("refs/"):
        raise InvalidInput(
            f"{name!r} cannot be a {what}: it reads as a version, a commit or a whole reference.",
            hint="Take a word, such as dev or release-1.",
            errors=[{"loc": [what], "msg": "reads as a version or a commit"}],
        )
    return name


def check_writable(session: Session, artifact: Artifact, branch: str) -> None:
    """Raise unless commits to ``branch`` are possible: NoBranch, Forbidden for what is none."""
    if branch == MAIN:
        return
    row = session.get(Alias, (artifact.id, branch), populate_existing=True)
    if row is not None and row.kind == BRANCH:
        return
    if row is not None and row.kind == ALIAS:
        raise Forbidden(
            f"{branch} is an alias of {path_of(artifact)}: people point it at versions, and nobody"
            " commits to it.",
            hint=f"Commit to {MAIN}, then `espalier alias set {path_of(artifact)} {branch} vN`.",
        )
    if row is not None or branch == LATEST or VERSION.fullmatch(branch) or COMMIT.fullmatch(branch):
        raise Forbidden(f"{branch} is no branch: what it names never changes.")
    raise NoBranch(f"{path_of(artifact)} has no branch {branch!r}.", hint="Create it first.")


def advance(
    session: Session, actor: Actor, artifact: Artifact, branch: str, version: Version
) -> None:
    """Point a branch at its new head, in the transaction that commits it. Main needs no row."""
    if branch == MAIN:
        return
    row = session.get_one(Alias, (artifact.id, branch))
    before, row.version_id, row.updated_at = row.version_id, version.id, now(session)
    if before != version.id:
        remember(session, actor, row, before, version.id, "commit")
    session.flush()


def create(
    session: Session, actor: Actor, artifact: Artifact, name: str, kind: str, version: Version,
    message: str = "",
) -> Alias:  # fmt: skip
    """Make a branch or a tag (``kind``) that points at ``version``.

    Raises InvalidInput for an impossible name, Conflict when the name is taken by anything.
    """
    if name == MAIN or VERSION.fullmatch(name):
        number = VERSION.fullmatch(name)
        if name == MAIN or int(number[1] if number else 0) <= artifact.latest:
            raise Conflict(f"{path_of(artifact)} has {name} already.")
    check_ref_name(name, kind)
    locked(session, Artifact.id == artifact.id)
    if version.artifact_id != artifact.id or version.deleted_at is not None:
        raise InvalidInput(f"{label(version)} is no version of {path_of(artifact)} that is there.")
    there = session.get(Alias, (artifact.id, name), populate_existing=True)
    if there is not None:
        raise Conflict(f"{path_of(artifact)} has {'an' if there.kind == ALIAS else 'a'}"
                       f" {there.kind} called {name!r} already.")  # fmt: skip
    row = Alias(artifact_id=artifact.id, name=name, version_id=version.id, kind=kind)
    row.updated_at = now(session)
    session.add(row)
    changed(artifact)
    session.flush()
    remember(session, actor, row, None, version.id, "set", message)
    audit(session, actor, f"{kind}.create", f"{path_of(artifact)}@{name}", {"to": version.commit})
    return row


def remove(session: Session, actor: Actor, artifact: Artifact, name: str, kind: str) -> None:
    """Take a branch or a tag away; the versions stay. Raises NoBranch, Forbidden."""
    if name == MAIN or (kind == TAG and VERSION.fullmatch(name)):
        raise Forbidden(f"{name} stays: {path_of(artifact)} has it as long as its versions.")
    locked(session, Artifact.id == artifact.id)
    row = session.get(Alias, (artifact.id, name), populate_existing=True)
    if row is not None and row.kind == ALIAS:
        raise Forbidden(
            f"{name} is an alias of {path_of(artifact)}, not a {kind}.",
            hint=f"`espalier alias remove {path_of(artifact)} {name}` takes it away.",
        )
    if row is None or row.kind != kind:
        raise NoBranch(f"{path_of(artifact)} has no {kind} {name!r}.")
    commit = row.version.commit
    remember(session, actor, row, row.version_id, None, "removed")
    session.delete(row)
    changed(artifact)
    session.flush()
    audit(session, actor, f"{kind}.remove", f"{path_of(artifact)}@{name}", {"from": commit})
