"""Uploads by Xet: clients send chunks they have not sent before, and how files are made of them.

A xorb (scheduler.bytes.xetformat) is read through, its hash is checked, and it becomes a blob. A
shard's files are put together from xorbs, chunk by chunk, and take the way of every upload
(scheduler.bytes.blobs): in parts, resumed where they ended, and verified against the file's sha256.

Whose chunks? Clients remember what they sent for three weeks and refer to it in later shards, so
xorbs stay a while after they were last referred to. Who knows a xorb's hash does not thereby have
its bytes: a shard refers to xorbs of the project that it is sent to, all of whose members may see
its files, and to no others. A xorb that only another project has is one that does not exist, and
has to be sent, all of it. Nobody is told which chunks are there (Xet's global deduplication):
asking for known hashes would tell who has what.
"""

import hashlib
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import timedelta
from functools import lru_cache, partial
from tempfile import TemporaryFile
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, exists, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from espalier.errors import EspalierError, NotFound, Unavailable
from scheduler.access import Actor
from scheduler.bytes.blobs import Blobs
from scheduler.bytes.streams import stream
from scheduler.bytes.xetformat import Malformed, ShardFile, Term, Xorb, read_chunks, read_xorb
from scheduler.catalog import quota
from scheduler.db import Database, now
from scheduler.models import Blob, Project, XetXorb
from scheduler.queries.blobs import held_by_person
from scheduler.store.base import Readable

#: How long a xorb stays after it was last referred to; clients forget theirs after 21 days.
KEPT = timedelta(days=28)
#: Bytes that are read ahead of a file that is put together.
_BUFFER = 256 << 10


class UnknownXorb(EspalierError):
    """A shard refers to chunks that the project never had, or has no more."""

    status, code, title = 400, "unknown_xorb", "Unknown xorb"

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(
            f"The upload refers to chunks that this server does not have: xorb {min(names)}"
            + (f" and {len(names) - 1} more." if len(names) > 1 else "."),
            hint="The client remembers an earlier upload. Set HF_HUB_DISABLE_XET=1, or delete its"
            " memory (HF_XET_CACHE, ~/.cache/huggingface/xet), and upload again.",
        )


# --- Xorbs --------------------------------------------------------------------------------


def keep_xorb(
    database: Database, blobs: Blobs, actor: Actor, project_id: str, name: str, source: Readable
) -> None:
    """Keep a xorb for the project, if its chunks are what its name says. Sent twice is kept once.

    It lies in a temporary file until it is in the store. Raises Malformed, TooLarge, and what
    uploads raise.
    """
    with TemporaryFile() as spool:
        xorb = read_xorb(_Tee(source, spool))
        if xorb.hash != name:
            raise Malformed(
                f"The chunks received make xorb {xorb.hash}, not {name}. Nothing was kept.",
                hint="The line is bad, or the client: upload again.",
            )
        size, _ = xorb.index[-1]
        spool.truncate(size)  # what may follow the chunks is known without it
        spool.seek(0)
        sha256 = hashlib.file_digest(spool, "sha256").hexdigest()

        def opened(start: int) -> Readable:
            spool.seek(start)
            return spool

        _upload(database, blobs, _owner(actor), (sha256, size), opened, reuse=True)
    with database.transaction() as session:
        if not blobs.touch(session, [sha256]):
            raise Unavailable(f"The xorb {name} was removed as it was kept.", hint="Send it again.")
        _register(session, project_id, xorb, sha256)


def _register(session: Session, project_id: str, xorb: Xorb, sha256: str) -> None:
    moment = now(session)
    row = XetXorb(project_id=project_id, hash=xorb.hash, sha256=sha256, size=xorb.index[-1][0])
    row.index = b"".join(struct.pack("<II", *chunk) for chunk in xorb.index)
    row.created_at = row.touched_at = moment
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # it came before: the older bytes, maybe packed another way, may go
        mine = (XetXorb.project_id == project_id) & (XetXorb.hash == xorb.hash)
        values = {"sha256": sha256, "size": row.size, "index": row.index, "touched_at": moment}
        session.execute(update(XetXorb).where(mine).values(values))


def is_kept() -> ColumnElement[bool]:
    """The condition under which a blob is a xorb that clients may refer to."""
    return exists().where(XetXorb.sha256 == Blob.sha256)


def forget(session: Session) -> None:
    """Drop the xorbs that nobody referred to for KEPT; garbage collection takes their blobs."""
    session.execute(delete(XetXorb).where(XetXorb.touched_at < now(session) - KEPT))


# --- Files --------------------------------------------------------------------------------


def rebuild(
    database: Database, blobs: Blobs, actor: Actor, project_id: str, files: Sequence[ShardFile]
) -> None:
    """Make the shard's files blobs that the actor has uploaded; called again, it goes on.

    Raises UnknownXorb, Malformed, QuotaExceeded, and what uploads raise: InvalidInput when what
    was put together has not the sha256 that the shard says.
    """
    with database.transaction() as session:
        project = session.get_one(Project, project_id)
        quota.check(session, project, {file.sha256: file.size for file in files})
        _take_up(session, project_id, {term.xorb for file in files for term in file.terms()})
    find = lru_cache(maxsize=64)(_Shelf(database, project_id))
    for file in files:
        with database.reading() as session:
            held = bool(held_by_person(session, actor, [file.sha256]))

        _upload(
            database,
            blobs,
            _owner(actor),
            (file.sha256, file.size),
            partial(_opened, blobs, find, file),
            reuse=held,
        )


def _opened(blobs: Blobs, find: "_Find", file: ShardFile, start: int) -> Readable:
    return stream(_content(blobs, find, file.terms(), start), _BUFFER)


def _take_up(session: Session, project_id: str, names: set[str]) -> None:
    """Renew the xorbs that a shard refers to. Raises UnknownXorb."""
    unknown, ordered, moment = set(names), sorted(names), now(session)
    for first in range(0, len(ordered), 1000):
        found = session.scalars(_kept(project_id, ordered[first : first + 1000])).all()
        for row in found:
            row.touched_at = moment
        unknown -= {row.hash for row in found}
    if unknown:
        raise UnknownXorb(unknown)


def _kept(project_id: str, names: Sequence[str]) -> Select[XetXorb]:
    """The project's xorbs of these names, in one order for all: nobody waits for another."""
    return (
        select(XetXorb)
        .join(Blob, Blob.sha256 == XetXorb.sha256)
        .where(XetXorb.project_id == project_id, XetXorb.hash.in_(names), Blob.damaged_at.is_(None))
        .order_by(XetXorb.hash)
    )


class _Shelf:
    """Xorbs by hash: the blob's sha256, and the ends and the lengths of its chunks."""

    def __init__(self, database: Database, project_id: str) -> None:
        self._database, self._project_id = database, project_id

    def __call__(self, name: str) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        with self._database.reading() as session:
            row = session.scalar(_kept(self._project_id, [name]))
        if row is None:
            raise UnknownXorb([name])
        numbers = struct.unpack(f"<{len(row.index) // 4}I", row.index)
        return row.sha256, numbers[::2], numbers[1::2]


_Find = Callable[[str], tuple[str, tuple[int, ...], tuple[int, ...]]]


def _content(blobs: Blobs, find: _Find, terms: Iterator[Term], start: int) -> Iterator[bytes]:
    """Yield the file's bytes from ``start``, a chunk at a time."""
    for term in terms:
        if start >= term.size:
            start -= term.size
            continue
        sha256, ends, lengths = find(term.xorb)
        if term.stop > len(ends) or sum(lengths[term.start : term.stop]) != term.size:
            raise Malformed(
                f"Chunks {term.start:,} to {term.stop:,} of xorb {term.xorb} are not"
                f" {term.size:,} bytes: it has {len(ends):,} chunks."
            )
        first = ends[term.start - 1] if term.start else 0
        try:
            packed = blobs.open(sha256, first, ends[term.stop - 1] - first)
        except NotFound as error:  # the store has lost it
            raise UnknownXorb([term.xorb]) from error
        for chunk in read_chunks(stream(packed, _BUFFER)):
            if start < len(chunk):
                yield chunk[start:] if start else chunk
            start = max(0, start - len(chunk))


# --- Uploading ----------------------------------------------------------------------------


def _owner(actor: Actor) -> str:
    return f"user:{actor.user_id}"


def _upload(
    database: Database,
    blobs: Blobs,
    owner: str,
    what: tuple[str, int],
    opened: Callable[[int], Readable],
    *,
    reuse: bool,
) -> None:
    """Upload (sha256, bytes), beginning where an earlier try ended; ``opened`` reads from there."""
    sha256, size = what
    with database.transaction() as session:
        upload = blobs.open_upload(session, owner, sha256, size, reuse=reuse)
    if upload.upload_id is None:
        return
    there = {part.number for part in upload.parts}
    source: Readable | None = None
    for number, start in enumerate(range(0, size, upload.part_size), 1):
        if number in there:
            source = None
            continue
        source = source or opened(start)
        window = _Window(source, min(upload.part_size, size - start))
        blobs.put_part(database, upload.upload_id, owner, number, window)
    blobs.complete(database, upload.upload_id, owner)


class _Tee:
    """A source whose bytes are also written to a file as they are read."""

    def __init__(self, source: Readable, target: Any) -> None:
        self._source, self._target = source, target

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._target.write(data)
        return data


class _Window:
    """The next ``size`` bytes of a source: one part."""

    def __init__(self, source: Readable, size: int) -> None:
        self._source, self._left = source, size

    def read(self, size: int, /) -> bytes:
        data = self._source.read(min(size, self._left))
        self._left -= len(data)
        return data
