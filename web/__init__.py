"""The web app: pages for people, a JSON API for programs, another for workers.

Importing the package costs nothing: the server's first process, which only minds the others,
stays small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from espalier.settings import Settings


def create_app(settings: Settings | None = None) -> Flask:
    """Return the WSGI app; the database must be migrated (``python -m scheduler init``)."""
    from web.app import create_app as create

    return create(settings)
