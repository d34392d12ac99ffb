"""Who leads, and whether the door is open: rows that their holders must keep renewing.

``scheduler`` is a lease. Of several schedulers on one SQLite file only its holder ticks; on
PostgreSQL an advisory lock does that, which ends with its connection, and the row only shows who
ticked. ``web`` is the door through which workers report. While it is shut, and for one lease of
an attempt after it is open again, no silence of a worker proves anything.
"""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, CursorResult, case, delete, literal, or_, text, true, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from scheduler.db import now
from scheduler.models import Presence

SCHEDULER, WEB = "scheduler", "web"
#: Seconds after which a scheduler that crashed is replaced.
LEASE = 10.0
#: Seconds after the web process's last beat that its door counts as shut.
DOOR = 15.0
_TICK_LOCK = 7265737


def beat(session: Session, name: str, holder: str, seconds: float = DOOR) -> None:
    """Say that ``holder`` of ``name`` is there, for ``seconds`` from now.

    Several holders of one name may beat: it is there while one of them is.
    """
    _renew(session, name, holder, seconds, now(session), true())


def lead(session: Session, holder: str, seconds: float = LEASE) -> bool:
    """Return whether ``holder`` is the scheduler that may tick in this transaction."""
    if session.get_bind().dialect.name == "postgresql":
        lock = text("SELECT pg_try_advisory_xact_lock(:key)")
        if not session.scalar(lock, {"key": _TICK_LOCK}):
            return False
        beat(session, SCHEDULER, holder, seconds)
        return True
    moment = now(session)
    span = timedelta(seconds=seconds)
    free = or_(
        Presence.holder == holder,
        Presence.expires_at < moment,
        Presence.expires_at > moment + 2 * span,  # the clock was set back: nobody wrote that now
    )
    return _renew(session, SCHEDULER, holder, seconds, moment, free)


def resign(session: Session, holder: str) -> None:
    """Let another scheduler begin at once, instead of when the lease ends."""
    session.execute(delete(Presence).where(Presence.name == SCHEDULER, Presence.holder == holder))


def door_open(session: Session, moment: datetime, grace: timedelta) -> bool:
    """Whether workers could report for at least ``grace`` until ``moment``.

    True where no web process ever was: functions are driven directly there.
    """
    door = session.get(Presence, WEB, populate_existing=True)
    return door is None or (door.since + grace <= moment and moment < door.expires_at)


def _renew(
    session: Session,
    name: str,
    holder: str,
    seconds: float,
    moment: datetime,
    allowed: ColumnElement[bool],
) -> bool:
    """Write the row if ``allowed`` or missing. A gap or a clock set back begins ``since`` anew."""
    expires = moment + timedelta(seconds=seconds)
    gap = or_(Presence.expires_at < moment, Presence.since > moment)
    since = case((gap, literal(moment, Presence.since.type)), else_=Presence.since)
    change = (
        update(Presence)
        .where(Presence.name == name, allowed)
        .values(holder=holder, since=since, seen_at=moment, expires_at=expires)
        .execution_options(synchronize_session=False)
    )
    if _changed(session, change):
        return True
    fresh = Presence(name=name, holder=holder, since=moment, seen_at=moment, expires_at=expires)
    try:
        with session.begin_nested():
            session.add(fresh)
    except IntegrityError:  # it is there: somebody else's, or made just now
        return _changed(session, change)
    session.expunge(fresh)
    return True


def _changed(session: Session, change: object) -> bool:
    result = session.execute(change)  # type: ignore[call-overload]
    assert isinstance(result, CursorResult)
    return result.rowcount == 1
