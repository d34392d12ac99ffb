"""``/api/v1``: what CLI, SDK and scripts speak, with a personal token; problems are RFC 9457."""

from collections.abc import Collection

from flask import Blueprint, Flask, jsonify
from flask.typing import ResponseReturnValue
from sqlalchemy.orm import Session

from scheduler.queries.blobs import held_by_person, holds_size, size_for_person
from web import auth
from web.api import (
    aliases,
    artifacts,
    compare,
    estimate,
    jobs,
    mirror,
    people,
    projects,
    reports,
    retiring,
    samples,
    webhooks,
    workers,
)
from web.api.openapi import document
from web.routes import Routes, refuse_unstorable
from web.transfer import add_transfer

PREFIX = "/api/v1"
DOCUMENT = "/api/openapi.json"


def register(app: Flask) -> Blueprint:
    """Add the API and its document to the app; return the blueprint."""
    blueprint = Blueprint("api", __name__, url_prefix=PREFIX)
    blueprint.before_request(auth.require_token)
    routes = Routes(blueprint, clean=refuse_unstorable)
    for part in (
        jobs, reports, samples, estimate, artifacts, aliases, retiring, compare, workers, people,
        projects, webhooks, mirror,
    ):  # fmt: skip
        part.add(routes)
    add_transfer(routes, owner=_owner, readable=_readable, held=_held, alike=_alike)
    app.register_blueprint(blueprint)

    @app.get(DOCUMENT)
    def openapi() -> ResponseReturnValue:
        return jsonify(document(PREFIX, routes.operations))

    return blueprint


def _owner() -> str:
    return f"user:{auth.actor().user_id}"


def _readable(session: Session, sha256: str) -> int | None:
    return size_for_person(session, auth.actor(), sha256)


def _held(session: Session, names: Collection[str]) -> set[str]:
    return held_by_person(session, auth.actor(), names)


def _alike(session: Session, size: int) -> bool:
    return holds_size(session, auth.actor(), size)
