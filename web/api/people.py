"""``/api/v1``: people, and the links that sign them in."""

from datetime import timedelta
from urllib.parse import urlencode

from flask import request
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import NotFound
from espalier.reftypes import NameText, ProjectText
from espalier.specs import Frozen
from scheduler import access
from scheduler.db import now
from scheduler.models import User
from scheduler.queries import Document, stamp
from web.api.models import Answer, Time
from web.auth import actor
from web.routes import Routes
from web.services import services

#: A link that is handed to a colleague may be opened the next morning.
LINK_LIFETIME = timedelta(hours=24)


class UserRequest(Frozen):
    name: NameText
    projects: tuple[ProjectText, ...] = Field(("team",), description="to be a member of")
    is_admin: bool = False


class LinkRequest(Frozen):
    user: NameText | None = Field(None, description="default: yourself")


class LoginLink(Answer):
    """Signs one browser in, once."""

    user: str
    url: str
    expires_at: Time


def add(routes: Routes) -> None:
    """Add the routes of people."""

    @routes.route("POST", "/users", status=201, answer=LoginLink)
    def add_user(body: UserRequest) -> Document:
        """Add a person to projects; they sign in with the link. Admins only."""
        access.require_admin(actor())
        with services().database.transaction() as session:
            user = access.create_user(session, body.name, body.is_admin)
            for name in body.projects:
                project = access.project_for(session, actor(), name, create=True)
                access.add_member(session, project, user.id)
            access.audit(session, actor(), "user.create", user.name)
            return _link(session, user)

    @routes.route("POST", "/login-links", status=201, answer=LoginLink)
    def make_login_link(body: LinkRequest) -> Document:
        """Make a link that signs in yourself or, as an admin, somebody else."""
        name = body.user or actor().name
        if name != actor().name:
            access.require_admin(actor())
        with services().database.transaction() as session:
            user = session.scalar(select(User).where(User.name == name))
            if user is None or user.disabled_at is not None:
                raise NotFound(f"There is no user {name!r}.")
            access.audit(session, actor(), "login.link", user.name)
            return _link(session, user)


def _link(session: Session, user: User) -> Document:
    token = access.mint(session, "login", user=user, expires_in=LINK_LIFETIME)
    base = services().settings.public_url or request.url_root
    return {
        "user": user.name,
        "url": f"{base.rstrip('/')}/login?{urlencode({'token': token})}",
        "expires_at": stamp(now(session) + LINK_LIFETIME),
    }
