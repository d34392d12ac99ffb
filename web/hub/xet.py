"""Xet, the half that uploads: what clients with hf_xet send instead of asking for LFS.

They fetch a short-lived token for a repository and speak to a content-addressed store with it:
chunks they have not sent before come in xorbs, then a shard tells how the files are made of them
(scheduler.bytes.xet). Downloads are plain HTTP: nothing here tells a client that it could have
chunks.
"""

import re
import time
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response, current_app, g, jsonify, request
from itsdangerous import BadSignature, URLSafeTimedSerializer
from sqlalchemy.orm import Session

from espalier.errors import EspalierError, InvalidInput, NotFound, Unauthorized
from scheduler import access
from scheduler.access import Actor
from scheduler.bytes import xet
from scheduler.bytes.xetformat import MAX_SHARD, MAX_XORB, read_shard
from scheduler.db import now
from scheduler.models import Token
from scheduler.queries import hub
from web import auth
from web.hub.errors import answer
from web.services import services

#: Where a project's content-addressed store answers, below this server's address. Clients remember
#: by this address what they have sent: in a project nothing is known of what others hold.
PREFIX = "/xet/<project_id>"
#: Seconds that a client's token works; it fetches another one when this is nearly over.
LIFETIME = 900
#: The table that clients may send behind a xorb's chunks.
_TABLE = 1 << 20


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends, and for which project."""

    actor: Actor
    project_id: str


def add(blueprint: Blueprint) -> None:
    """Add the token's route to the hub's."""
    rule = "/api/<any(models, datasets):kind>/<project>/<name>/xet-write-token/<path:rev>"
    blueprint.get(rule)(write_token)


def make_store() -> Blueprint:
    """Return the content-addressed store's blueprint, which has tokens of its own."""
    store = Blueprint("xet", __name__, url_prefix=PREFIX)
    store.url_value_preprocessor(_note_project)
    store.before_request(_require_sender)
    store.register_error_handler(EspalierError, _refuse)
    store.post("/v1/xorbs/default/<name>")(put_xorb)
    store.post("/v1/shards")(put_shard)
    methods = ["GET", "HEAD", "POST", "PUT", "DELETE"]
    store.add_url_rule("/<path:rest>", view_func=nothing, methods=methods)
    return store


# --- The token ----------------------------------------------------------------------------


def write_token(kind: str, project: str, name: str, rev: str) -> Response:
    """A token for uploads to this repository, and where they go.

    It names the personal token that it was made with, and dies with it; it is good for nothing
    else.
    """
    with services().database.reading() as session:
        personal = access.authenticate(session, auth.bearer(), "personal")
        artifact = hub.repository(session, auth.actor(), kind, project, name)
        access.project_for(session, auth.actor(), project)
        what = {"token": personal.id, "project": artifact.project_id, "repo": artifact.id}
    expires = int(time.time()) + LIFETIME
    secret, url = str(_signer().dumps(what)), f"{request.host_url}xet/{artifact.project_id}"
    response = jsonify(casUrl=url, exp=expires, accessToken=secret)
    response.headers["X-Xet-Cas-Url"] = url
    response.headers["X-Xet-Token-Expiration"] = str(expires)
    response.headers["X-Xet-Access-Token"] = secret
    response.headers["Cache-Control"] = "no-store"
    return response


def _signer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(str(current_app.secret_key), salt="xet-write-token")


def _note_project(endpoint: str | None, values: dict[str, Any] | None) -> None:
    g.wanted = (values or {}).pop("project_id", None)


def _require_sender() -> None:
    with auth.counting_refusals(), services().database.reading() as session:
        try:
            what = _signer().loads(auth.bearer(), max_age=LIFETIME)
        except BadSignature as error:  # expired ones are such, too
            raise _refused() from error
        g.sender = _sender(session, what["token"], what["project"])
    if g.wanted != g.sender.project_id:
        raise NotFound("This token is for another project's uploads.")


def _sender(session: Session, token_id: str, project_id: str) -> Sender:
    """Return who holds the token, if it still works and they are still in the project."""
    token = session.get(Token, token_id)
    if token is None or token.user is None or token.revoked_at or token.user.disabled_at:
        raise _refused()
    if token.expires_at and token.expires_at <= now(session):
        raise _refused()
    actor = access.actor_for(token.user)
    if not access.may_see(session, actor, project_id):
        raise NotFound("The project that this token is for is not yours any more.")
    return Sender(actor, project_id)


def _refused() -> Unauthorized:
    return Unauthorized(
        "This token for uploads has expired, or was revoked.", hint="Begin the upload again."
    )


def _refuse(error: EspalierError) -> Response:
    """Return the error; clients show nothing of it but the status line, so it is told there."""
    response = answer(error)
    line = response.headers["X-Error-Message"].encode("ascii", "replace").decode()
    response.status = f"{response.status_code} {line[:400]}"
    return response


# --- The store ----------------------------------------------------------------------------


def put_xorb(name: str) -> Response:
    """Receive a xorb: chunks of files."""
    if not re.fullmatch(r"[0-9a-f]{64}", name):
        raise InvalidInput(f"{name!r:.80} is no xorb's hash: 64 hexadecimal digits are.")
    store, sender = services(), _this_sender()
    request.max_content_length = MAX_XORB + _TABLE
    xet.keep_xorb(
        store.database, store.blobs, sender.actor, sender.project_id, name, request.stream
    )
    return jsonify(was_inserted=True)


def put_shard() -> Response:
    """Receive a shard, and put its files together; the answer comes when they are there."""
    store, sender = services(), _this_sender()
    request.max_content_length = MAX_SHARD
    files = read_shard(request.stream)
    xet.rebuild(store.database, store.blobs, sender.actor, sender.project_id, files)
    return jsonify(result=1)


def nothing(rest: str) -> Response:
    """Everything else that clients ask a store for: they go on without it."""
    raise NotFound(f"There is no {rest[:100]} here: this server takes uploads only.")


def _this_sender() -> Sender:
    found: Sender = g.sender
    return found
