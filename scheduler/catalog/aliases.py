"""Names of versions that move: aliases, with their history and the way back.

Every move is an AliasMove, an audit row and, where somebody listens, a delivery, all in the
transaction that moves it. Branches and tags are rows of the same table; commits move them
(scheduler.catalog.commits), nothing here does.
"""

from difflib import get_close_matches

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, joinedload

from espalier.errors import Conflict, InvalidInput, NotFound
from espalier.refs import COMMIT, VERSION, check_name
from scheduler.access import Actor, audit
from scheduler.catalog import gates, projects, webhooks
from scheduler.catalog.registry import LATEST, MAIN, changed, did_you_mean, label, locked, path_of
from scheduler.db import now
from scheduler.models import Alias, AliasMove, Artifact, Version

#: Moves that an answer holds at most.
MAX_MOVES = 500


def set_alias(
    session: Session,
    actor: Actor,
    artifact: Artifact,
    alias: str,
    version: Version,
    expected: str | None = None,
) -> Alias:
    """Point ``alias`` at ``version``, if it points at ``expected`` when that is given.

    ``expected`` is a commit or ``v3``; an empty one says that there is no such alias yet. Raises
    InvalidInput for a name that reads as a version or a commit, Conflict when somebody else moved
    the alias, GateRefused when the version is not what the alias asks for
    (scheduler.catalog.gates).
    """
    _check_alias(alias)
    row = _hold(session, artifact, alias)
    _check_expected(row, alias, expected)
    session.refresh(version, ["deleted_at"])
    if version.artifact_id != artifact.id or version.deleted_at is not None:
        raise InvalidInput(f"{label(version)} is no version of {path_of(artifact)} that is there.")
    if row is not None and row.version_id == version.id:
        return row
    verdict = gates.judge(session, artifact, alias, version, row.version if row else None)
    return _move(session, actor, artifact, alias, version, "set", verdict.require())


def rollback(
    session: Session, actor: Actor, artifact: Artifact, alias: str, expected: str | None = None
) -> Alias:
    """Point ``alias`` at what it pointed at before its last move, as a move of its own.

    Rolled back again it goes one further; versions that were deleted are passed over. What it
    goes back to stood there before, so a gate is not asked: the way out of a bad move is always
    open. Raises Conflict when there is nothing before, or somebody else moved the alias.
    """
    row = _hold(session, artifact, alias)
    _check_expected(row, alias, expected)
    version = before(session, artifact, alias)
    if version is None:
        raise Conflict(
            f"{path_of(artifact)}@{alias} has pointed at nothing before that is still there.",
            hint=f"`espalier alias history {path_of(artifact)} {alias}` tells where it has been.",
        )
    came_from = f"v{row.version.number}" if row else "nothing"
    detail = f"Back from {came_from} to v{version.number}."
    return _move(session, actor, artifact, alias, version, "rollback", detail)


def remove_alias(
    session: Session, actor: Actor, artifact: Artifact, alias: str, expected: str | None = None
) -> None:
    """Take the alias away; the version it pointed at stays, and so does a gate on the name.

    Raises NotFound, Conflict when somebody else moved it, Forbidden when it is gated and the
    actor is neither owner nor admin: set anew, it would have no incumbent to beat.
    """
    row = _hold(session, artifact, alias)
    if row is None:
        raise NotFound(
            f"{path_of(artifact)} has no alias {alias!r}.",
            hint=did_you_mean(get_close_matches(alias, [a.name for a in artifact.aliases])),
        )
    _check_expected(row, alias, expected)
    if gates.gate_on(session, artifact, alias) is not None:
        projects.require_manager(session, actor, artifact.project)
    take_away(session, actor, row, "removed")
    audit(
        session,
        actor,
        "alias.remove",
        f"{path_of(artifact)}@{alias}",
        {"from": row.version.commit},
    )


def history(session: Session, artifact: Artifact, alias: str) -> list[AliasMove]:
    """Return the moves of an alias, a branch or a tag, newest first, up to MAX_MOVES."""
    moves = (
        _moves(artifact, alias)
        .options(joinedload(AliasMove.before), joinedload(AliasMove.after))
        .order_by(AliasMove.id.desc())
        .limit(MAX_MOVES)
    )
    return list(session.scalars(moves))


def before(session: Session, artifact: Artifact, alias: str) -> Version | None:
    """Return the version that `rollback` would go to; None when there is none."""
    stood: list[str | None] = []  # where it has been and can go back to, as the moves have left it
    for move in session.scalars(_moves(artifact, alias).order_by(AliasMove.id)):
        if not stood:
            stood.append(move.from_id)
        if move.why == "rollback" and move.to_id in stood:
            del stood[_last(stood, move.to_id) + 1 :]
        else:
            stood.append(move.to_id)
    now_at = stood.pop() if stood else None
    for version_id in reversed(stood):
        version = session.get(Version, version_id) if version_id else None
        if version is not None and version.deleted_at is None and version.id != now_at:
            return version
    return None


# --- Moving -------------------------------------------------------------------------------


def remember(
    session: Session,
    actor: Actor,
    row: Alias,
    before: str | None,
    after: str | None,
    why: str,
    detail: str = "",
) -> None:
    """Write down one move of a name from version id to version id; None is nothing.

    ``why`` is set, rollback, commit, removed or deleted.
    """
    session.add(
        AliasMove(
            artifact_id=row.artifact_id,
            alias=row.name,
            kind=row.kind,
            from_id=before,
            to_id=after,
            actor=actor.label,
            why=why,
            detail=detail,
            created_at=now(session),
        )
    )


def take_away(session: Session, actor: Actor, row: Alias, why: str) -> None:
    """Remove a name of a locked artifact; its history stays."""
    artifact, version = row.artifact, row.version
    remember(session, actor, row, version.id, None, why)
    told = {"alias": row.name, "from": label(version), "to": None, "by": actor.name, "why": why}
    if row.kind == "alias":
        webhooks.announce(session, artifact, "alias.moved", told)
    session.delete(row)
    changed(artifact)
    session.flush()
    session.expire(artifact, ["aliases"])


def _move(
    session: Session,
    actor: Actor,
    artifact: Artifact,
    alias: str,
    version: Version,
    why: str,
    detail: str,
) -> Alias:
    row = session.get(Alias, (artifact.id, alias))
    old = row.version if row else None
    if row is None:
        row = Alias(artifact_id=artifact.id, name=alias, kind="alias", version_id=version.id)
    row.version_id, row.updated_at = version.id, now(session)
    session.add(row)
    changed(artifact)
    session.flush()
    session.expire(row, ["version"])
    session.expire(artifact, ["aliases"])
    remember(session, actor, row, old.id if old else None, version.id, why, detail)
    told = {
        "alias": alias,
        "from": label(old) if old else None,
        "to": label(version),
        "commit": version.commit,
        "by": actor.name,
        "why": why,
        "detail": detail,
    }
    webhooks.announce(session, artifact, "alias.moved", told)
    change = {"from": old.commit if old else None, "to": version.commit}
    audit(session, actor, f"alias.{why}", f"{path_of(artifact)}@{alias}", change)
    return row


# --- Checks -------------------------------------------------------------------------------


def _hold(session: Session, artifact: Artifact, alias: str) -> Alias | None:
    """Lock the artifact, and return the alias as it is now. Raises Conflict for what is none."""
    held = locked(session, Artifact.id == artifact.id)
    if held.deleted_at is not None:
        raise NotFound(f"{path_of(artifact)} was deleted.")
    row = session.get(Alias, (artifact.id, alias), populate_existing=True)
    if row is not None and row.kind != "alias":
        moved = "is moved by commits to it" if row.kind == "branch" else "never moves"
        raise Conflict(
            f"{alias} is a {row.kind} of {path_of(artifact)}: it {moved}.",
            hint="Take another name for the alias.",
        )
    return row


def _check_expected(row: Alias | None, alias: str, expected: str | None) -> None:
    if expected is None or (expected == "" and row is None):
        return
    if row is not None and expected in (row.version.commit, f"v{row.version.number}"):
        return
    there = f"v{row.version.number} ({row.version.commit})" if row else "nothing"
    raise Conflict(
        f"{alias} points at {there}, not at {expected or 'nothing'}: somebody moved it.",
        hint="Look at what it points at now, and decide again.",
    )


def _check_alias(alias: str) -> None:
    check_name(alias, "alias")
    if alias in (LATEST, MAIN) or VERSION.fullmatch(alias) or COMMIT.fullmatch(alias):
        raise InvalidInput(
            f"{alias!r} cannot be an alias: it reads as a version or a commit.",
            hint="Take a word, such as production or best.",
            errors=[{"loc": ["alias"], "msg": "reads as a version or a commit"}],
        )


def _moves(artifact: Artifact, alias: str) -> Select[AliasMove]:
    return select(AliasMove).where(AliasMove.artifact_id == artifact.id, AliasMove.alias == alias)


def _last(stood: list[str | None], version_id: str | None) -> int:
    return len(stood) - 1 - stood[::-1].index(version_id)
