"""Who somebody is and what they may see: actors, tokens, passwords, projects, and the audit chain.

A token's text leaves this module once, when it is minted; the database holds its sha256 only.
"""

import hashlib
import json
import re
import secrets
import string
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import CursorResult, delete, func, select, text, true, update
from sqlalchemy.orm import Session
from sqlalchemy.sql import ColumnElement

from espalier.errors import Conflict, Forbidden, InvalidInput, NotFound, Unauthorized
from espalier.refs import check_name, check_project
from scheduler.db import now
from scheduler.models import Audit, Project, ProjectMember, Token, User, Worker

TokenKind = Literal["personal", "worker", "login", "join", "session"]
#: Tokens that work once.
ONE_USE = frozenset({"login", "join"})
#: How long the one-use ones live.
LOGIN_LIFETIME = timedelta(minutes=60)
JOIN_LIFETIME = timedelta(minutes=15)
#: How long a browser stays signed in.
SESSION_LIFETIME = timedelta(days=14)
#: ``used_at`` of a personal token is this coarse, so that reading does not mean writing.
USED_RESOLUTION = timedelta(minutes=10)

TOKEN = re.compile(r"hf_[A-Za-z0-9]{40}")
MIN_PASSWORD, MAX_PASSWORD = 12, 512

#: OWASP's argon2id setting for small servers: 19 MiB, two passes, one lane.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
#: The advisory lock on PostgreSQL that makes the audit rows a chain.
_AUDIT_LOCK = 0x4553_5041


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a person, a worker, or the system itself."""

    user_id: str | None
    name: str
    is_admin: bool = False
    worker_id: str | None = None

    @property
    def label(self) -> str:
        """``user:ada``, ``worker:studio-1`` or ``system``: how audit rows name it."""
        if self.worker_id:
            return f"worker:{self.name}"
        return f"user:{self.name}" if self.user_id else self.name


SYSTEM = Actor(None, "system", is_admin=True)


def actor_for(user: User) -> Actor:
    return Actor(user.id, user.name, user.is_admin)


def worker_actor(worker: Worker) -> Actor:
    return Actor(None, worker.name, worker_id=worker.id)


# --- Tokens -------------------------------------------------------------------------------


def mint(
    session: Session,
    kind: TokenKind,
    *,
    user: User | None = None,
    worker: Worker | None = None,
    name: str = "",
    expires_in: timedelta | None = None,
) -> str:
    """Make a token and return its text, ``hf_`` and 40 letters and digits, this one time."""
    if (worker if kind == "worker" else user) is None:
        raise ValueError(f"a {kind} token belongs to a {'worker' if kind == 'worker' else 'user'}")
    alphabet = string.ascii_letters + string.digits
    secret = "hf_" + "".join(secrets.choice(alphabet) for _ in range(40))
    created = now(session)
    session.add(
        Token(
            digest=_digest(secret),
            kind=kind,
            name=name[:96],
            user_id=user.id if user else None,
            worker_id=worker.id if worker else None,
            created_at=created,
            expires_at=created + expires_in if expires_in else None,
        )
    )
    session.flush()
    return secret


def authenticate(session: Session, secret: str, kind: TokenKind) -> Token:
    """Return the live token of this kind; its ``user`` or ``worker`` is who holds it.

    Raises Unauthorized: malformed, unknown, of another kind, used up, expired, revoked, or its
    holder disabled.
    """
    token = None
    if TOKEN.fullmatch(secret):
        token = session.scalar(select(Token).where(Token.digest == _digest(secret)))
    if token is None or token.kind != kind:
        raise Unauthorized(f"This is not a valid {kind} token.", hint=_HINTS[kind])
    holder_gone = (token.user is not None and token.user.disabled_at is not None) or (
        token.worker is not None and token.worker.revoked_at is not None
    )
    if token.revoked_at or holder_gone:
        raise Unauthorized(f"This {kind} token was revoked.", hint=_HINTS[kind])
    if token.kind in ONE_USE and token.used_at:
        raise Unauthorized(f"This {kind} token was used already; it works once.", hint=_HINTS[kind])
    if token.expires_at and token.expires_at <= now(session):
        raise Unauthorized(f"This {kind} token has expired.", hint=_HINTS[kind])
    return token


_HINTS = {
    "personal": "Make one on the settings page, or run `espalier login`.",
    "worker": "Join this machine again with `espalier worker join`.",
    "login": "Ask an admin for a new login link.",
    "join": "Make a new join token on the workers page.",
    "session": "Sign in again.",
}


def redeem(session: Session, secret: str, kind: TokenKind) -> Token:
    """Use up a one-use token; of two that try at once, one gets it. Raises Unauthorized."""
    token = authenticate(session, secret, kind)
    result = session.execute(
        update(Token)
        .where(Token.id == token.id, Token.used_at.is_(None))
        .values(used_at=now(session))
    )
    if not isinstance(result, CursorResult) or result.rowcount != 1:
        raise Unauthorized(f"This {kind} token was used already; it works once.", hint=_HINTS[kind])
    return token


def use_is_stale(token: Token) -> bool:
    """Whether ``used_at`` should be written again."""
    return token.used_at is None or datetime.now(UTC) - token.used_at > USED_RESOLUTION


def touch(session: Session, token_id: str) -> None:
    """Note that the token was used."""
    session.execute(update(Token).where(Token.id == token_id).values(used_at=now(session)))


def tokens_of(session: Session, user_id: str) -> list[Token]:
    """Return the user's personal tokens that still work or have just expired, newest first."""
    return list(
        session.scalars(
            select(Token)
            .where(Token.user_id == user_id, Token.kind == "personal", Token.revoked_at.is_(None))
            .order_by(Token.created_at.desc())
        )
    )


def forget_expired(session: Session, user: User) -> None:
    """Delete the user's sessions and links that have expired, so that rows do not pile up."""
    session.execute(
        delete(Token).where(
            Token.user_id == user.id,
            Token.kind.in_(("session", "login")),
            Token.expires_at < now(session),
        )
    )


def sign_out(session: Session, secret: str) -> None:
    """End the session whose secret this is; a cookie stolen from it is worth nothing then."""
    session.execute(
        update(Token)
        .where(Token.digest == _digest(secret), Token.kind == "session")
        .values(revoked_at=now(session))
    )


def revoke_token(session: Session, actor: Actor, token_id: str) -> None:
    """Revoke one's own token, or, as an admin, anybody's. Raises NotFound."""
    token = session.get(Token, token_id)
    if token is None or not (actor.is_admin or token.user_id == actor.user_id):
        raise NotFound("There is no such token.")
    if token.revoked_at is None:
        token.revoked_at = now(session)
        audit(session, actor, "token.revoke", token.id, {"kind": token.kind, "name": token.name})


def revoke_tokens_of(session: Session, worker: Worker) -> None:
    """Revoke every token that the worker holds."""
    held = Token.worker_id == worker.id, Token.revoked_at.is_(None)
    session.execute(update(Token).where(*held).values(revoked_at=now(session)))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


# --- People -------------------------------------------------------------------------------


def create_user(session: Session, name: str, is_admin: bool = False) -> User:
    """Add a person; they sign in by a login link. Raises InvalidInput, Conflict."""
    check_name(name, "user")
    if session.scalar(select(User.id).where(func.lower(User.name) == name.lower())):
        raise Conflict(f"There is a user called {name!r} already.")
    user = User(name=name, is_admin=is_admin, created_at=now(session))
    session.add(user)
    session.flush()
    return user


def ensure_first_run(session: Session) -> User:
    """Return the first admin; an empty database gets user ``admin`` and project ``team``."""
    admin = session.scalar(
        select(User)
        .where(User.is_admin == true(), User.disabled_at.is_(None))
        .order_by(User.created_at, User.id)
        .limit(1)
    )
    if admin is not None:
        return admin
    if session.scalar(select(User.id).limit(1)):
        raise Conflict("There are users, and none of them is an admin.")
    admin = create_user(session, "admin", is_admin=True)
    project_for(session, actor_for(admin), "team", create=True)
    return admin


def set_password(session: Session, user: User, password: str) -> None:
    """Set a password and sign every session out. Raises InvalidInput."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise InvalidInput(
            f"A password has {MIN_PASSWORD} to {MAX_PASSWORD} characters; this one has"
            f" {len(password)}.",
            errors=[{"loc": ["password"], "msg": f"use at least {MIN_PASSWORD} characters"}],
        )
    user.password_hash = _HASHER.hash(password)
    sign_out_everywhere(session, user)


def check_password(session: Session, name: str, password: str) -> User:
    """Return the user whose password this is. Raises Unauthorized, one text for every reason."""
    user = session.scalar(select(User).where(User.name == name, User.disabled_at.is_(None)))
    known = user.password_hash if user else None
    try:
        _HASHER.verify(known or _nobodys_password(), password[:MAX_PASSWORD])
    except (VerificationError, InvalidHashError):
        user = None
    if user is None or not known:
        raise Unauthorized("Name and password do not match.")
    return user


@cache
def _nobodys_password() -> str:
    """Return what is verified when there is no such user, so that the answer takes as long."""
    return _HASHER.hash(secrets.token_hex())


def sign_out_everywhere(session: Session, user: User) -> None:
    """End every session of the user; personal tokens stay."""
    session.execute(
        update(Token)
        .where(Token.user_id == user.id, Token.kind == "session", Token.revoked_at.is_(None))
        .values(revoked_at=now(session))
    )


# --- Projects -----------------------------------------------------------------------------


def visible_projects(actor: Actor) -> ColumnElement[bool]:
    """Return the condition on ``Project.id`` under which the actor sees what is in it."""
    if actor.is_admin:
        return true()
    return Project.id.in_(
        select(ProjectMember.project_id).where(ProjectMember.user_id == actor.user_id)
    )


def projects_of(session: Session, actor: Actor) -> list[Project]:
    """Return the projects the actor sees, by name."""
    return list(
        session.scalars(select(Project).where(visible_projects(actor)).order_by(Project.name))
    )


def may_see(session: Session, actor: Actor, project_id: str) -> bool:
    found = select(Project.id).where(Project.id == project_id, visible_projects(actor))
    return session.scalar(found) is not None


def project_for(session: Session, actor: Actor, name: str, *, create: bool = False) -> Project:
    """Return the project if the actor is in it (admins are in all).

    ``create`` makes one that does not exist, with the actor as its owner. Raises NotFound, the
    same whether it does not exist or is somebody else's, and InvalidInput for an impossible name.
    """
    check_project(name)
    project = session.scalar(select(Project).where(Project.name == name, visible_projects(actor)))
    if project is not None:
        return project
    taken = session.scalar(select(Project.id).where(func.lower(Project.name) == name.lower()))
    if not create or taken:
        mine = [p.name for p in projects_of(session, actor)]
        near = get_close_matches(name, mine, n=3, cutoff=0.5) or mine[:3]
        raise NotFound(
            f"There is no project {name!r} that you are a member of.",
            hint=f"Yours: {', '.join(near)}." if near else "Ask an admin to add you to one.",
            errors=[{"loc": ["project"], "msg": f"no such project (got {name!r})"}],
        )
    project = Project(name=name, created_at=now(session))
    session.add(project)
    session.flush()
    if actor.user_id:
        add_member(session, project, actor.user_id, "owner")
    audit(session, actor, "project.create", name)
    return project


def add_member(session: Session, project: Project, user_id: str, role: str = "member") -> None:
    """Make the user a member; a second time changes their role."""
    member = session.get(ProjectMember, (project.id, user_id))
    if member is None:
        member = ProjectMember(project_id=project.id, user_id=user_id, created_at=now(session))
        session.add(member)
    member.role = role
    session.flush()


def require_admin(actor: Actor) -> None:
    """Raise Forbidden unless the actor is an admin."""
    if not actor.is_admin:
        raise Forbidden("Only an admin can do this.", hint="Ask one of your team's admins.")


# --- The audit chain ----------------------------------------------------------------------


def audit(
    session: Session, actor: Actor, action: str, subject: str, data: dict[str, Any] | None = None
) -> None:
    """Append a row that holds the hash of the one before.

    Call it last in a transaction: on PostgreSQL it holds the chain's lock until the commit.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _AUDIT_LOCK})
    previous = session.scalar(select(Audit.digest).order_by(Audit.id.desc()).limit(1))
    row = Audit(
        actor=actor.label,
        action=action,
        subject=subject[:320],
        data=data or {},
        created_at=now(session),
        previous=previous or "0" * 64,
    )
    row.digest = _audit_digest(row)
    session.add(row)
    session.flush()


def first_broken_audit(session: Session) -> int | None:
    """Return the id of the first row that was changed or does not follow the one before it."""
    previous = "0" * 64
    for row in session.scalars(select(Audit).order_by(Audit.id).execution_options(yield_per=500)):
        if row.previous != previous or row.digest != _audit_digest(row):
            return row.id
        previous = row.digest
    return None


def _audit_digest(row: Audit) -> str:
    stamp = row.created_at.astimezone(UTC).isoformat(timespec="microseconds")
    told = [row.previous, row.actor, row.action, row.subject, row.data, stamp]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
