"""The transfer routes (espalier.transfer), the same for people and for workers."""

from collections.abc import Callable, Collection

from flask import Response, request
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from espalier.errors import NotFound
from espalier.specs import Frozen
from scheduler.bytes.blobs import OpenUpload as Opened
from scheduler.models import Upload
from scheduler.queries import Document
from web.downloads import send_blob
from web.routes import Routes
from web.services import services

#: Blobs that one question may name.
MAX_BLOBS = 10_000
SHA256 = r"^[0-9a-f]{64}$"

#: Returns the size of a blob that the requester may read, else None.
Readable = Callable[[Session, str], int | None]


class BlobName(Frozen):
    """One file's bytes, by sha256 in lower-case hexadecimal and size in bytes."""

    sha256: str = Field(pattern=SHA256)
    size: int = Field(ge=0)


class Outline(Frozen):
    """What a client calls a file that it has not hashed yet, and the file's bytes."""

    outline: str = Field(pattern=SHA256)
    size: int = Field(ge=0)


class Hashed(Frozen):
    """The sha256 of an upload that was begun before it was known."""

    sha256: str | None = Field(default=None, pattern=SHA256)


class BlobNames(Frozen):
    blobs: tuple[BlobName, ...] = Field(max_length=MAX_BLOBS)


class MissingBlobs(BaseModel):
    """The sha256 of those that must be uploaded."""

    missing: list[str]


class UploadPart(BaseModel):
    number: int
    size: int


class OpenUpload(BaseModel):
    """``upload_id`` is null when the blob is there already; ``parts`` were received before."""

    upload_id: str | None
    part_size: int
    parts: list[UploadPart]


#: Returns which of these blobs the requester has shown to have.
Held = Callable[[Session, Collection[str]], set[str]]
#: Says whether the requester may have a file of this size already.
Alike = Callable[[Session, int], bool]


def add_transfer(
    routes: Routes,
    owner: Callable[[], str],
    readable: Readable,
    held: Held | None = None,
    alike: Alike | None = None,
) -> None:
    """Add the routes; ``owner`` names the requester as uploads know it.

    ``held`` tells which blobs the requester has shown to have; without it, what is there is taken
    as theirs. ``alike`` tells whether they may have a file of some size already.
    """

    @routes.route("POST", "/blobs/missing", answer=MissingBlobs)
    def blobs_missing(body: BlobNames) -> Document:
        """Tell which of these blobs are not in the store yet."""
        with services().database.transaction() as session:
            sizes = {blob.sha256: blob.size for blob in body.blobs}
            missing = set(services().blobs.missing(session, sizes.items()))
            if held is not None:
                missing |= sizes.keys() - held(session, sizes)
            return {"missing": [sha256 for sha256 in sizes if sha256 in missing]}

    @routes.route("POST", "/uploads", answer=OpenUpload)
    def open_upload(body: BlobName) -> Document:
        """Begin an upload, or take one up again: the parts that have arrived are listed."""
        with services().database.transaction() as session:
            upload = services().blobs.open_upload(
                session,
                owner(),
                body.sha256,
                body.size,
                reuse=held is None or bool(held(session, [body.sha256])),
            )
        return _told(upload)

    @routes.route("PUT", "/uploads/<upload_id>/parts/<int:number>", status=204, raw=True)
    def put_part(upload_id: str, number: int) -> None:
        """Receive one part, from 1, each ``part_size`` bytes but the last."""
        store = services()
        # The store knows the part's size, and refuses what is longer.
        request.max_content_length = store.settings.max_upload_bytes
        store.blobs.put_part(store.database, upload_id, owner(), number, request.stream)

    @routes.route("POST", "/uploads/<upload_id>/complete", answer=BlobName)
    def complete_upload(upload_id: str, body: Hashed) -> Document:
        """Verify what arrived and keep it; 422 when its sha256 is another.

        An upload that was begun before its sha256 was known is told it here.
        """
        store = services()
        store.blobs.complete(store.database, upload_id, owner(), body.sha256)
        with store.database.reading() as session:
            upload = session.get_one(Upload, upload_id)
            return {"sha256": upload.sha256, "size": upload.size}

    if alike is not None:
        _add_ahead(routes, owner, alike)

    @routes.route("GET", "/blobs/<sha256>")
    def get_blob(sha256: str) -> Response:
        """Return a blob's bytes. Supports Range."""
        with services().database.reading() as session:
            size = readable(session, sha256)
        if size is None:
            raise NotFound(f"There is no blob {sha256:.64} that you may read.")
        return send_blob(sha256, size)


def _add_ahead(routes: Routes, owner: Callable[[], str], alike: Alike) -> None:
    @routes.route("POST", "/uploads/ahead", answer=OpenUpload)
    def open_ahead(body: Outline) -> Document:
        """Begin an upload before its sha256 is known; `complete` is told it.

        ``upload_id`` is null where you have a file of that size: hash yours, and ask for it.
        """
        with services().database.transaction() as session:
            upload = services().blobs.open_ahead(
                session, owner(), body.outline, body.size, lambda: alike(session, body.size)
            )
        return _told(upload)


def _told(upload: Opened) -> Document:
    return {
        "upload_id": upload.upload_id,
        "part_size": upload.part_size,
        "parts": [{"number": part.number, "size": part.size} for part in upload.parts],
    }
