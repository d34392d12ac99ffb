"""Large files, by git's LFS protocol as hub clients speak it: basic, and in numbered parts.

Where a client puts bytes to is a signed address: clients send no token there. It names one upload
of one person and works for a while; the upload behind it is the one that the native protocol
continues, too (scheduler.bytes.blobs), whichever process began it.
"""

from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer
from sqlalchemy import select

from espalier.errors import EspalierError, Forbidden, InvalidInput, NotFound
from scheduler.bytes.blobs import OpenUpload
from scheduler.catalog import quota
from scheduler.models import Blob, Upload, UploadPart, User
from scheduler.queries import Document, hub
from scheduler.queries.blobs import held_by_person
from web.auth import actor
from web.hub.bodies import items, json_body, text
from web.hub.errors import answer
from web.services import services

#: Where bytes are put to; the word is no project's.
PREFIX = "/uploads/lfs"
#: Seconds that an address works. A client that comes later asks for new ones, and goes on.
LIFETIME = 12 * 3600
#: Files that one question may name; clients ask for 256 at once.
MAX_OBJECTS = 1000
_MEDIA_TYPE = "application/vnd.git-lfs+json"


def add(blueprint: Blueprint) -> None:
    """Add the routes that ask where to put files."""
    rule = "<project>/<name>.git/info/lfs/objects/batch"
    blueprint.post(f"/{rule}", endpoint="model_batch")(model_batch)
    blueprint.post(f"/datasets/{rule}", endpoint="dataset_batch")(dataset_batch)


def make_targets() -> Blueprint:
    """Return the blueprint of the signed addresses: nothing but the signature is asked for."""
    targets = Blueprint("lfs", __name__, url_prefix=PREFIX)
    targets.register_error_handler(EspalierError, answer)
    targets.put("/<signed>")(put)
    targets.post("/<signed>")(complete)
    targets.post("/<signed>/verify")(verify)
    return targets


# --- Where to put it ----------------------------------------------------------------------


def model_batch(project: str, name: str) -> Response:
    """Tell where to put the large files of a model, those that are not there."""
    return _batch("models", project, name)


def dataset_batch(project: str, name: str) -> Response:
    """Tell where to put the large files of a data set, those that are not there."""
    return _batch("datasets", project, name)


def _batch(kind: str, project: str, name: str) -> Response:
    body = json_body()
    if body.get("operation") != "upload" or body.get("hash_algo", "sha256") != "sha256":
        raise InvalidInput("Only uploads of files by sha256 are asked for here; GET …/resolve/….")
    wanted = _objects(body)
    owner = f"user:{actor().user_id}"
    with services().database.transaction() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        quota.check(session, artifact.project, wanted)
        held = held_by_person(session, actor(), wanted)
        opened = {
            oid: services().blobs.open_upload(session, owner, oid, size, reuse=oid in held)
            for oid, size in wanted.items()
        }
    objects = [_object(owner, oid, size, opened[oid]) for oid, size in wanted.items()]
    response = jsonify(transfer="basic", objects=objects)
    response.mimetype = _MEDIA_TYPE
    return response


def _objects(body: dict[str, Any]) -> dict[str, int]:
    wanted: dict[str, int] = {}
    for number, item in enumerate(items(body, "objects", MAX_OBJECTS)):
        size = item.get("size")
        if not isinstance(size, int) or isinstance(size, bool):
            raise InvalidInput(f"objects[{number}]: size must be a number of bytes.")
        wanted[text(item, "oid")] = size
    return wanted


def _object(owner: str, oid: str, size: int, upload: OpenUpload) -> Document:
    """Return one answer; without ``actions`` the file is there, and the client sends nothing."""
    found: Document = {"oid": oid, "size": size, "authenticated": True}
    if upload.upload_id is None:
        return found
    verifying = {"href": _href(upload.upload_id, owner, 0) + "/verify", "header": {}}
    if size <= upload.part_size:
        sending: Document = {"href": _href(upload.upload_id, owner, 1), "header": {}}
    else:
        count = -(-size // upload.part_size)
        parts = {str(n): _href(upload.upload_id, owner, n) for n in range(1, count + 1)}
        header = {"chunk_size": str(upload.part_size), **parts}
        sending = {"href": _href(upload.upload_id, owner, 0), "header": header}
    found["actions"] = {"upload": sending, "verify": verifying}
    return found


def _signer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(str(current_app.secret_key), salt="lfs-upload")


def _href(upload_id: str, owner: str, part: int) -> str:
    """Return the address of a part, from 1; 0 is the whole upload's."""
    signed = _signer().dumps([upload_id, owner, part])
    return f"{request.host_url.rstrip('/')}{PREFIX}/{signed!s}"


# --- The signed addresses -----------------------------------------------------------------


def put(signed: str) -> Response:
    """Receive a part, or a file that is one part; the file is verified and kept then."""
    upload, number = _opened(signed)
    store = services()
    with store.database.reading() as session:
        part = session.get(UploadPart, (upload.id, number))
    if part is None and upload.size:
        # The store knows the part's size, and refuses what is longer.
        request.max_content_length = store.settings.max_upload_bytes
        store.blobs.put_part(store.database, upload.id, upload.owner, number, request.stream)
    response = Response(status=200)
    if part is not None:  # it came before, and is not read again
        response.headers["Connection"] = "close"
    if upload.size <= upload.part_size:
        store.blobs.complete(store.database, upload.id, upload.owner)
    response.headers["ETag"] = f'"{_tag(upload, number)}"'
    return response


def complete(signed: str) -> Response:
    """Verify all parts as one file, and keep it."""
    upload, _ = _opened(signed)
    body = json_body()
    if body.get("oid") != upload.sha256:
        raise InvalidInput(f"This upload is of {upload.sha256}, not of {body.get('oid')!r:.80}.")
    parts = [(p.get("partNumber"), p.get("etag")) for p in items(body, "parts", 1 << 16)]
    count = -(-upload.size // upload.part_size)
    expected = [(n, f'"{_tag(upload, n)}"') for n in range(1, count + 1)]
    if parts != expected:
        raise InvalidInput(
            f"The parts must be 1 to {count}, in this order, each with the ETag that its upload"
            " was answered with.",
            hint="Upload the parts that are missing, and complete it again.",
            errors=[{"loc": ["parts"], "msg": "out of order, missing, or of another upload"}],
        )
    store = services()
    store.blobs.complete(store.database, upload.id, upload.owner)
    return jsonify(success=True)


def verify(signed: str) -> Response:
    """Say whether the file is there now, with the size that the client knows."""
    upload, _ = _opened(signed)
    body = json_body()
    with services().database.reading() as session:
        blob = session.get(Blob, upload.sha256)
    there = blob is not None and blob.damaged_at is None
    if not there or (body.get("oid"), body.get("size")) != (upload.sha256, upload.size):
        raise NotFound(f"{upload.sha256} is not in the store with these bytes. Upload it again.")
    return jsonify(success=True)


def _opened(signed: str) -> tuple[Upload, int]:
    """Return the upload that the address was made for, and the part. Raises Forbidden, NotFound."""
    hint = "Begin the upload again: what has arrived is kept and not sent twice."
    try:
        upload_id, owner, part = _signer().loads(signed, max_age=LIFETIME)
    except SignatureExpired as error:
        raise Forbidden("This address for an upload has expired.", hint=hint) from error
    except (BadSignature, ValueError, TypeError) as error:
        raise Forbidden("This address for an upload is not one of ours.", hint=hint) from error
    with services().database.reading() as session:
        upload = session.scalar(select(Upload).where(Upload.id == upload_id, Upload.owner == owner))
        user = session.get(User, owner.removeprefix("user:"))
    if user is None or user.disabled_at is not None:
        raise Forbidden("Who began this upload may not go on with it.")
    if upload is None:
        raise NotFound("This upload is no more: given up, or its bytes were wrong.", hint=hint)
    return upload, part


def _tag(upload: Upload, number: int) -> str:
    return f"{upload.id}-{number}"
