"""The pages for people. Views fetch, call and render; each user action is a noun and a POST."""

from importlib import import_module

from flask import Flask, g

from web.live import Hub
from web.pages.blueprint import pages
from web.pages.format import register_filters
from web.services import Services

__all__ = ["register"]

#: Modules whose import gives the blueprint its views.
VIEWS = (
    "artifacts", "comparison", "data", "files", "gating", "history", "job", "jobs", "project",
    "report", "samples", "settings", "storage", "submit", "sweep", "workers",
)  # fmt: skip


def register(app: Flask) -> None:
    """Give the app its pages, their filters and their live streams."""
    found: Services = app.extensions["espalier"]
    app.extensions["espalier.live"] = Hub(found.database)
    # Addresses of static files carry their digest: a browser need not ask for them again.
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = 365 * 86_400
    register_filters(app)
    app.context_processor(lambda: {"viewer": g.get("actor")})
    for name in VIEWS:
        import_module(f"web.pages.{name}")
    app.register_blueprint(pages)
