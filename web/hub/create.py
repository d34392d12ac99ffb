"""Repositories made, moved, deleted and set up; cards looked at before they are committed."""

from flask import Blueprint, Response, jsonify, request

from espalier.errors import InvalidInput
from espalier.states import ArtifactKind
from scheduler import access
from scheduler.catalog import repositories, retiring
from scheduler.catalog.repositories import Exists
from scheduler.contents.cards import front_matter, read_card
from scheduler.queries import hub
from web.auth import actor
from web.hub.bodies import json_body, text
from web.hub.errors import answer
from web.services import services

_KINDS = {"model": ArtifactKind.MODEL, "dataset": ArtifactKind.DATASET}
_TYPE = "<any(models, datasets):kind>"
_PRIVATE = "Every repository here is private: its project's members see it, and nobody else."


def add(blueprint: Blueprint) -> None:
    """Add the routes of repositories as a whole."""
    blueprint.post("/api/repos/create")(create)
    blueprint.delete("/api/repos/delete")(delete)
    blueprint.post("/api/repos/move")(move)
    blueprint.put(f"/api/{_TYPE}/<project>/<name>/settings")(settings)
    blueprint.post("/api/validate-yaml")(validate_yaml)


def create() -> Response:
    """Make a repository; 409 with its address if it is there already."""
    body = json_body()
    project, name = _named(body)
    kind = _kind(body)
    public = body.get("visibility", "private") != "private" or body.get("private") is False
    store = services()
    try:
        repositories.create(store.database, store.blobs, actor(), project, name, kind)
    except Exists as error:
        response = answer(error)
        response.set_data(jsonify(error=error.detail, url=_url(kind, project, name)).get_data())
        return response
    response = jsonify(url=_url(kind, project, name), name=f"{project}/{name}", private=True)
    if public:  # many tools say so without being asked
        response.headers["X-HF-Warning"] = f"visibility; {_PRIVATE}"
    return response


def delete() -> Response:
    """Delete a repository; an admin can bring it back for a while."""
    body = json_body()
    project, name = _named(body)
    with services().database.transaction() as session:
        artifact = hub.repository(session, actor(), _plural(body), project, name)
        retiring.delete_artifact(session, actor(), artifact)
    return jsonify(success=True)


def move() -> Response:
    """Give a repository another name, in this project or another; the old one leads to it."""
    body = json_body()
    source, target = _split(text(body, "fromRepo")), _split(text(body, "toRepo"))
    with services().database.transaction() as session:
        artifact = hub.repository(session, actor(), _plural(body), *source)
        repositories.move(session, actor(), artifact, *target)
    return jsonify(success=True, url=_url(_kind(body), *target))


def settings(kind: str, project: str, name: str) -> Response:
    """Take what changes nothing: repositories are private, and their members need no gate."""
    body = json_body()
    with services().database.reading() as session:
        hub.repository(session, actor(), kind, project, name)
    if body.get("visibility", "private") != "private" or body.get("private") is False:
        raise InvalidInput(_PRIVATE, hint="Add people to the project instead.")
    if body.get("gated"):
        raise InvalidInput("Repositories cannot be gated: who is in the project has access.")
    return jsonify(private=True, visibility="private", gated=False)


def validate_yaml() -> Response:
    """Look at a card's front matter: 400 with errors when it is not YAML."""
    content = text(json_body(), "content")
    if front_matter(content) is None:
        empty = "empty or missing yaml metadata in repo card"
        return jsonify(errors=[], warnings=[{"message": empty}])
    try:
        read_card(content)
    except InvalidInput as error:
        response = jsonify(errors=[{"message": error.detail}], warnings=[], error=error.detail)
        response.status_code = 400
        return response
    return jsonify(errors=[], warnings=[])


# --- What is meant ------------------------------------------------------------------------


def _named(body: dict[str, object]) -> tuple[str, str]:
    """Return project and name; without an organisation, the project that the person means."""
    name, project = text(body, "name"), body.get("organization")
    if "/" in name and not project:
        return _split(name)
    if project:
        return text(body, "organization"), name
    with services().database.reading() as session:
        mine = [p.name for p in access.projects_of(session, actor())]
    if actor().name in mine:
        return actor().name, name
    if len(mine) == 1:
        return mine[0], name
    raise InvalidInput(
        f"{name!r} needs its project before it: write project/{name}.",
        hint=f"Yours: {', '.join(mine[:5])}." if mine else "Ask an admin to add you to one.",
        errors=[{"loc": ["organization"], "msg": "missing"}],
    )


def _split(path: str) -> tuple[str, str]:
    parts = path.split("/")
    if len(parts) != 2:
        raise InvalidInput(f"{path!r:.200} is not project/name.")
    return parts[0], parts[1]


def _kind(body: dict[str, object]) -> ArtifactKind:
    wanted = body.get("type") or "model"
    if not isinstance(wanted, str) or wanted not in _KINDS:
        raise InvalidInput(
            f"There are no repositories of the type {wanted!r:.40} here: models and datasets.",
            errors=[{"loc": ["type"], "msg": f"must be {' or '.join(_KINDS)}"}],
        )
    return _KINDS[wanted]


def _plural(body: dict[str, object]) -> str:
    return "datasets" if _kind(body) == ArtifactKind.DATASET else "models"


def _url(kind: ArtifactKind, project: str, name: str) -> str:
    prefix = "datasets/" if kind == ArtifactKind.DATASET else ""
    return f"{request.host_url}{prefix}{project}/{name}"
