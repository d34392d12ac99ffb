"""Blobs: verified bytes under their sha256, however they arrive.

A blob's row exists only for bytes that were read back and had the right sha256 and size. Long
work on the store is done outside of SQL transactions; what follows it is one short transaction.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import BinaryIO

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from espalier.errors import InvalidInput, NotFound, StorageFull, TooLarge, Unavailable
from espalier.settings import Settings
from scheduler.bytes import uploads
from scheduler.bytes.arriving import Arriving
from scheduler.bytes.blobfaults import unknown, wrong_bytes, wrong_size
from scheduler.bytes.blobrows import Digests, digests, insert, mark_damaged, touch
from scheduler.db import Database, now
from scheduler.models import Blob, Upload, UploadPart
from scheduler.store.base import (
    MAX_PARTS,
    Driver,
    Part,
    Readable,
    UploadLost,
    blob_key,
    staging_key,
)
from scheduler.store.directory import Directory

#: Seconds that `complete` waits for a verification before it says "ask again"; clients wait 60.
VERIFY_WAIT = 40.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """What a client needs to go on: ``upload_id`` is None when the blob is there already."""

    upload_id: str | None
    part_size: int
    parts: tuple[Part, ...] = ()


class Blobs:
    """The blobs of one store and the database that knows them."""

    def __init__(self, driver: Driver, settings: Settings) -> None:
        self.driver = driver
        self._part_bytes = settings.part_bytes
        self._max_bytes = settings.max_upload_bytes
        self._arriving = Arriving(driver)
        self._verifying: dict[str, Future[None]] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="verify")

    # --- What is there --------------------------------------------------------------------

    def missing(self, session: Session, wanted: Iterable[tuple[str, int]]) -> list[str]:
        """Return the sha256 of those (sha256, size) that must be uploaded.

        The others are touched, so that garbage collection leaves them until they are published:
        the caller commits. Raises InvalidInput for a malformed sha256 or another size.
        """
        sizes = {}
        for sha256, size in wanted:
            self._check(sha256, size)
            sizes[sha256] = size
        found = self.touch(session, sizes)
        for sha256, blob in found.items():
            if sizes[sha256] != blob.size:
                raise wrong_size(blob, sizes[sha256])
        return [sha256 for sha256 in sizes if sha256 not in found]

    def touch(self, session: Session, names: Iterable[str]) -> dict[str, Digests]:
        """Renew those of the blobs that exist, and return them by sha256; the caller commits."""
        return touch(session, names)

    def open(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Return the blob's bytes from ``start``; raise NotFound when the store has none."""
        return self.driver.open(blob_key(sha256), start, length)

    def open_file(self, sha256: str) -> BinaryIO | None:
        """Return the blob as an open file, None where the store has no files. Raises NotFound."""
        if isinstance(self.driver, Directory):
            return self.driver.open_file(blob_key(sha256))
        return None

    def link(self, sha256: str, name: str | None = None) -> str | None:
        """Return a URL where anybody may GET the blob for a while, where the store has such."""
        return self.driver.link(blob_key(sha256), name)

    def keep(self, database: Database, data: bytes) -> str:
        """Store a small blob (a manifest) outside of any transaction; return its sha256.

        The bytes come first, then the row: a crash between leaves an orphan that garbage
        collection takes. Had it taken them before the row was there, they are put again.
        """
        found = digests([data], len(data))
        with database.transaction() as session:
            there = bool(touch(session, [found.sha256]))
        while not there:
            self.driver.put(blob_key(found.sha256), data)
            there = self._register(database, found)
        return found.sha256

    def _register(self, database: Database, found: Digests) -> bool:
        """Make the row of bytes that were put just now, if they are still there."""
        with suppress(_Swept), database.transaction() as session:
            insert(session, found)
            if self.driver.size(blob_key(found.sha256)) != found.size:
                raise _Swept
            return True
        return False

    def put_bytes(self, session: Session, data: bytes) -> str:
        """Have a small blob within the caller's transaction, and return its sha256.

        Who kept it before holds no lock while the store is written. Else it is written now, after
        the row: garbage collection cannot come between.
        """
        found = digests([data], len(data))
        if not touch(session, [found.sha256]):
            insert(session, found)
            self.driver.put(blob_key(found.sha256), data)
        return found.sha256

    def verify_there(self, database: Database, sizes: dict[str, int]) -> list[str]:
        """Return those of the blobs (sha256 → bytes) that the store has lost: absent from now."""
        lost = [name for name, size in sizes.items() if self.driver.size(blob_key(name)) != size]
        if lost:
            with database.transaction() as session:
                mark_damaged(session, lost)
        return lost

    # --- Uploads --------------------------------------------------------------------------

    def open_upload(
        self, session: Session, owner: str, sha256: str, size: int, *, reuse: bool = True
    ) -> OpenUpload:
        """Begin an upload of ``owner`` (``user:<id>``, ``worker:<id>``), or take it up again.

        Without ``reuse`` the bytes have to come even if they are there: knowing a sha256 is not
        having the file.
        """
        self._check(sha256, size)
        part_size = self._part_size(size)
        if not self.missing(session, [(sha256, size)]) and reuse:
            return OpenUpload(None, part_size)
        mine = (Upload.owner == owner) & (Upload.sha256 == sha256)
        upload = session.scalar(select(Upload).where(mine))
        if upload is not None and (uploads.is_complete(upload) or upload.size != size):
            session.delete(upload)
            session.flush()
            upload = None
        if upload is None:
            self._check_room(size)
            moment = now(session)
            upload = Upload(owner=owner, sha256=sha256, size=size, part_size=part_size)
            upload.created_at = upload.touched_at = moment
            try:
                with session.begin_nested():
                    session.add(upload)
            except IntegrityError:  # the same owner in another process, just now
                upload = session.scalars(select(Upload).where(mine)).one()
        return OpenUpload(upload.id, upload.part_size, uploads.received(session, upload))

    def open_ahead(
        self,
        session: Session,
        owner: str,
        outline: str,
        size: int,
        is_likely_there: Callable[[], bool],
    ) -> OpenUpload:
        """Begin an upload whose sha256 is not known yet, or take it up again.

        ``outline``, of a sha256's shape, is what the owner calls it until `complete` names it.
        Where the file may be there already nothing is begun: hash it, then ask.
        """
        self._check(outline, size)
        mine = (Upload.owner == owner) & (Upload.sha256 == outline)
        if session.scalar(select(Upload.id).where(mine)) is None and is_likely_there():
            return OpenUpload(None, self._part_size(size))
        return self.open_upload(session, owner, outline, size)

    def put_part(
        self, database: Database, upload_id: str, owner: str, number: int, source: Readable
    ) -> None:
        """Store one part, from 1, durably. The same part may be sent again.

        Raises NotFound when the upload is unknown, another owner's, or must begin afresh;
        InvalidInput for a number or a length that does not fit.
        """
        with database.reading() as session:
            upload = uploads.owned(session, upload_id, owner)
        uploads.check_open(upload)
        plan = uploads.plan(upload)
        if not 1 <= number <= len(plan):
            raise InvalidInput(
                f"Part {number} does not exist: {upload.size} bytes are {len(plan)} parts of"
                f" {upload.part_size}.",
                errors=[{"loc": ["number"], "msg": f"must be 1 to {len(plan)}"}],
            )
        key, part = staging_key(upload_id), plan[number - 1]
        try:
            handle = self._handle(database, upload)
            tag = self.driver.put_part(key, handle, part, source)
        except UploadLost:
            raise self._begin_again(database, upload) from None
        with database.transaction() as session:
            row = uploads.owned(session, upload_id, owner, writing=True)
            uploads.check_open(row)
            row.touched_at = now(session)
            session.merge(UploadPart(upload_id=upload_id, number=number, size=part.size, etag=tag))
        self._arriving.received(upload_id, upload.size, handle, replace(part, tag=tag))

    def _handle(self, database: Database, upload: Upload) -> str:
        """Return the store's handle of the upload; of two first parts, one begins it."""
        handle: str | None = upload.driver_state.get("handle")
        if handle:
            return handle
        key = staging_key(upload.id)
        mine = self.driver.begin(key)
        with database.transaction() as session:
            row = uploads.owned(session, upload.id, upload.owner, writing=True)
            uploads.check_open(row)
            handle = row.driver_state.get("handle") or mine
            row.driver_state = {"handle": handle}
        if handle != mine:
            self.driver.abort(key, mine)
        return handle

    def complete(
        self, database: Database, upload_id: str, owner: str, sha256: str | None = None
    ) -> None:
        """Read the upload back, and make it a blob if sha256 and size are right.

        ``sha256`` is that of an upload which was begun before it was known. Done twice is done.
        Raises InvalidInput when parts are missing (they can still be sent) or
        the bytes are wrong (nothing of them stays), NotFound when the upload is unknown or must
        begin afresh, Unavailable while a large one is still being read.
        """
        with database.reading() as session:
            upload = uploads.owned(session, upload_id, owner)
            received = uploads.received(session, upload)
        if not uploads.is_complete(upload):
            if sha256 is not None:
                self._check(sha256, upload.size)
            uploads.check_received(upload, received)
            wanted = sha256 or upload.sha256
            self._wait_for(upload, partial(self._verify, database, upload, wanted, received))

    def _wait_for(self, upload: Upload, verify: Callable[[], None]) -> None:
        """Verify in the background: it may take longer than a client waits for one answer."""
        with self._lock:
            future = self._verifying.get(upload.id)
            if future is None:
                future = self._verifying[upload.id] = self._pool.submit(verify)
        future.add_done_callback(lambda _: self._verifying.pop(upload.id, None))
        if not wait([future], VERIFY_WAIT).done:
            error = Unavailable(f"{upload.size} bytes are still being verified; ask again.")
            error.retry_after = 2.0
            raise error
        future.result()

    def _verify(
        self, database: Database, upload: Upload, sha256: str, parts: Sequence[Part]
    ) -> None:
        key, final = staging_key(upload.id), blob_key(sha256)
        try:
            if parts:
                handle = upload.driver_state["handle"]
                found = self._arriving.assemble(upload.id, upload.size, handle, parts)
            else:
                self.driver.put(key, b"")
                found = digests(self.driver.open(key), upload.size)
            if (found.sha256, found.size) != (sha256, upload.size):
                self._forget(database, upload)
                raise wrong_bytes(sha256, upload.size, found)
            self.driver.move(key, final)
        except (UploadLost, NotFound):
            with database.reading() as session:
                if uploads.is_complete(uploads.owned(session, upload.id, upload.owner)):
                    return  # another process was quicker
            moved = self._moved(database, sha256, upload.size)
            if moved is None:
                raise self._begin_again(database, upload) from None
            found = moved
        try:
            self._keep(database, upload, found)
        except _Swept:
            raise self._begin_again(database, upload) from None

    def _moved(self, database: Database, sha256: str, size: int) -> Digests | None:
        """Return what was moved and not committed: a crash, or another process right now.

        A blob that is known says nothing: this owner may have its sha256 only.
        """
        with database.reading() as session:
            known = session.get(Blob, sha256) is not None
        final = blob_key(sha256)
        if known or self.driver.size(final) != size:
            return None
        found = digests(self.driver.open(final), size)
        return found if found.sha256 == sha256 else None

    def _keep(self, database: Database, upload: Upload, found: Digests) -> None:
        with database.transaction() as session:
            insert(session, found)
            # The row is ours now. Had garbage collection, which deletes under the row's lock,
            # taken these bytes for an orphan's, they would be gone.
            if self.driver.size(blob_key(found.sha256)) != found.size:
                raise _Swept
            other = uploads.settle(session, upload.id, found.sha256)
        if other is not None:
            self.discard(other)

    def _begin_again(self, database: Database, upload: Upload) -> NotFound:
        self._forget(database, upload)
        return unknown(upload.id)

    def _forget(self, database: Database, upload: Upload) -> None:
        """Remove what is staged, then the upload."""
        self.discard(upload)
        with database.transaction() as session:
            session.execute(delete(Upload).where(Upload.id == upload.id))

    def discard(self, upload: Upload) -> None:
        """Remove what the store holds of an upload that will not be completed."""
        key = staging_key(upload.id)
        self._arriving.forget(upload.id)
        if "handle" in upload.driver_state:
            self.driver.abort(key, upload.driver_state["handle"])
        self.driver.delete(key)

    def _check_room(self, size: int) -> None:
        room = self.driver.room()
        if room is not None and size > room:
            raise StorageFull(
                f"{size} bytes do not fit: the store in {self.driver.place} has {room} left.",
                hint="Make room there, then try again.",
            )

    def _part_size(self, size: int) -> int:
        fewest = -(-size // MAX_PARTS)
        return max(self._part_bytes, -(-fewest >> 20) << 20)

    def _check(self, sha256: str, size: int) -> None:
        if not _SHA256.fullmatch(sha256):
            raise InvalidInput(
                f"{sha256[:80]!r} is not a sha256: write 64 lower-case hexadecimal digits.",
                errors=[{"loc": ["sha256"], "msg": "must be 64 lower-case hexadecimal digits"}],
            )
        if size < 0:
            raise InvalidInput(f"A size of {size} bytes is not possible.")
        if size > self._max_bytes:
            raise TooLarge(
                f"{size} bytes are more than the {self._max_bytes} that this server takes.",
                hint="An administrator can raise ESPALIER_MAX_UPLOAD_BYTES.",
                errors=[{"loc": ["size"], "msg": f"must be at most {self._max_bytes}"}],
            )


class _Swept(Exception):
    """Garbage collection took bytes that had no row yet."""
