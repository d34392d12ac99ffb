"""Names of versions that move: aliases, with their history.

Every move is an AliasMove and an audit row, in the transaction that moves it.
"""

from difflib import get_close_matches

from sqlalchemy.orm import Session

from espalier.errors import Conflict, InvalidInput, NotFound
from espalier.refs import COMMIT, VERSION, check_name
from scheduler.access import Actor, audit
from scheduler.db import now
from scheduler.models import Alias, AliasMove, Artifact, Version
from scheduler.registry import LATEST, MAIN, changed, did_you_mean, label, locked, path_of


def set_alias(
    session: Session,
    actor: Actor,
    artifact: Artifact,
    alias: str,
    version: Version,
    expected: str | None = None,
) -> Alias:
    """Point ``alias`` at ``version``, if it points at the commit ``expected`` when one is given.

    Raises InvalidInput for a name that reads as a version or a commit, Conflict when somebody
    else moved the alias.
    """
    _check_alias(alias)
    if version.artifact_id != artifact.id or version.deleted_at is not None:
        raise InvalidInput(f"{label(version)} is no version of {path_of(artifact)} that is there.")
    locked(session, Artifact.id == artifact.id)
    row = session.get(Alias, (artifact.id, alias), populate_existing=True)
    before = row.version.commit if row else None
    if expected is not None and before != expected:
        raise Conflict(
            f"{alias} points at {before or 'nothing'}, not at {expected}: somebody moved it.",
            hint="Look at what it points at now, and decide again.",
        )
    if row is not None and before == version.commit:
        return row
    moment, from_id = now(session), row.version_id if row else None
    if row is None:
        row = Alias(artifact=artifact, name=alias, version=version, kind="alias")
    row.version, row.updated_at = version, moment
    session.add(row)
    changed(artifact)
    session.flush()
    _remember(session, actor, row, from_id, version.id, "set")
    change = {"from": before, "to": version.commit}
    audit(session, actor, "alias.set", f"{path_of(artifact)}@{alias}", change)
    return row


def remove_alias(session: Session, actor: Actor, artifact: Artifact, alias: str) -> None:
    """Take the alias away; the version it pointed at stays. Raises NotFound."""
    row = session.get(Alias, (artifact.id, alias))
    if row is None:
        raise NotFound(
            f"{path_of(artifact)} has no alias {alias!r}.",
            hint=did_you_mean(get_close_matches(alias, [a.name for a in artifact.aliases])),
        )
    commit = row.version.commit
    _remember(session, actor, row, row.version_id, None, "removed")
    session.delete(row)
    changed(artifact)
    session.flush()
    audit(session, actor, "alias.remove", f"{path_of(artifact)}@{alias}", {"from": commit})


def _remember(
    session: Session, actor: Actor, row: Alias, before: str | None, after: str | None, why: str
) -> None:
    session.add(
        AliasMove(
            artifact_id=row.artifact_id or row.artifact.id,
            alias=row.name,
            kind=row.kind,
            from_id=before,
            to_id=after,
            actor=actor.label,
            why=why,
            created_at=now(session),
        )
    )


def _check_alias(alias: str) -> None:
    check_name(alias, "alias")
    if alias in (LATEST, MAIN) or VERSION.fullmatch(alias) or COMMIT.fullmatch(alias):
        raise InvalidInput(
            f"{alias!r} cannot be an alias: it reads as a version or a commit.",
            hint="Take a word, such as production or best.",
            errors=[{"loc": ["alias"], "msg": "reads as a version or a commit"}],
        )
