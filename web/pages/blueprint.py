"""The blueprint that every page belongs to: a signed-in person, and the way to the database."""

from contextlib import AbstractContextManager

from flask import Blueprint, current_app
from sqlalchemy.orm import Session

from web.auth import require_person
from web.live import Hub
from web.services import services

pages = Blueprint("pages", __name__)
pages.before_request(require_person)


def reading() -> AbstractContextManager[Session]:
    """A snapshot of the database for one page."""
    return services().database.reading()


def hub() -> Hub:
    """What tells live pages that something has happened."""
    found: Hub = current_app.extensions["espalier.live"]
    return found
