"""Branches and tags, made and taken away."""

from typing import Any

from flask import Blueprint, Response, jsonify

from espalier.errors import InvalidInput
from scheduler.catalog import branches
from scheduler.catalog.registry import BRANCH, MAIN, TAG
from scheduler.queries import hub
from web.auth import actor
from web.hub.bodies import json_body, text
from web.services import services

_REPO = "/api/<any(models, datasets):kind>/<project>/<name>"


def add(blueprint: Blueprint) -> None:
    """Add the routes that change references; reading them is among the repositories'."""
    blueprint.post(f"{_REPO}/branch/<path:branch>")(create_branch)
    blueprint.delete(f"{_REPO}/branch/<path:branch>")(delete_branch)
    blueprint.post(f"{_REPO}/tag/<path:rev>")(create_tag)
    blueprint.delete(f"{_REPO}/tag/<path:tag>")(delete_tag)


def create_branch(kind: str, project: str, name: str, branch: str) -> Response:
    """Make a branch at ``startingPoint``, else at main's head; 409 if the name is taken."""
    body = json_body()
    if body.get("emptyBranch") or body.get("overwrite"):
        raise InvalidInput("A branch begins at a commit, and is never overwritten.")
    start = body.get("startingPoint") or MAIN
    return _create(kind, project, name, (branch, BRANCH), start)


def create_tag(kind: str, project: str, name: str, rev: str) -> Response:
    """Make a tag at a revision; 409 if the name is taken."""
    body = json_body()
    message = body.get("message") or ""
    return _create(kind, project, name, (text(body, "tag"), TAG), rev, str(message))


def delete_branch(kind: str, project: str, name: str, branch: str) -> Response:
    """Take a branch away; its versions stay."""
    return _remove(kind, project, name, branch, BRANCH)


def delete_tag(kind: str, project: str, name: str, tag: str) -> Response:
    """Take a tag away; its version stays."""
    return _remove(kind, project, name, tag, TAG)


def _create(
    kind: str, project: str, name: str, made: tuple[str, str], rev: Any, message: str = ""
) -> Response:
    if not isinstance(rev, str):
        raise InvalidInput("A starting point is a branch, a tag or a commit.")
    with services().database.transaction() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        version = hub.revision(session, artifact, rev)
        branches.create(session, actor(), artifact, *made, version, message)
    return jsonify(success=True)


def _remove(kind: str, project: str, name: str, ref: str, what: str) -> Response:
    with services().database.transaction() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        branches.remove(session, actor(), artifact, ref, what)
    return jsonify(success=True)
