"""Whole blobs from one place to another, hashed on the way."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from espalier.errors import EspalierError
from espalier.ids import new_id
from scheduler.store.base import CHUNK, MAX_PARTS, Driver, Part, blob_key, staging_key
from scheduler.store.directory import Directory

#: Bytes of a part where the target takes parts.
PART = 64 << 20


class Differs(EspalierError):
    """A blob's bytes are not what its name says."""

    code, title = "differs", "Other bytes"


def copy_blob(
    source: Driver,
    target: Driver,
    sha256: str,
    size: int,
    *,
    link: bool = True,
    clone: bool = False,
) -> None:
    """Have the blob in ``target`` as well, whole and right, or not at all.

    Between two folders of one disk it is a link, where ``link`` allows it: no bytes are copied,
    and none are read. With ``clone`` it is a file of its own that shares its blocks with the
    source's, where the file system can: no bytes are written, and all are hashed. Raises NotFound
    when the source has none, Differs when its bytes are others.
    """
    key = blob_key(sha256)
    if target.size(key) == size:
        return
    if link and isinstance(source, Directory) and isinstance(target, Directory):
        if source.size(key) != size:
            source.open(key)  # raises NotFound where there is none
            raise Differs(f"Blob {sha256} has {source.size(key)} bytes, not {size}.")
        if target.adopt(source.path_of(key), key):
            return
    staged = staging_key(new_id())
    stream = _Stream(source.open(key))
    try:
        if clone and _cloned(source, target, key, staged):
            stream = _Stream(target.open(staged))
            stream.drain()
        else:
            _stage(stream, target, staged, size)
        if (stream.sha256, stream.size) != (sha256, size):
            raise Differs(f"Blob {sha256} has other bytes: their sha256 is {stream.sha256}.")
        target.move(staged, key)
    finally:
        target.delete(staged)


def hash_blob(driver: Driver, sha256: str) -> str:
    """Return the sha256 of the bytes that lie there. Raises NotFound."""
    digest = hashlib.sha256()
    for chunk in driver.open(blob_key(sha256)):
        digest.update(chunk)
    return digest.hexdigest()


def _cloned(source: Driver, target: Driver, key: str, staged: str) -> bool:
    if not (isinstance(source, Directory) and isinstance(target, Directory)):
        return False
    return target.take(source.path_of(key), staged)


def _stage(stream: "_Stream", target: Driver, key: str, size: int) -> None:
    if size <= PART:
        target.put(key, stream.read(size + 1))
        return
    handle, parts = target.begin(key), []
    step = max(PART, -(-size // MAX_PARTS))
    try:
        for number, start in enumerate(range(0, size, step), 1):
            part = Part(number, start, min(step, size - start))
            tag = target.put_part(key, handle, part, _Limited(stream, part.size))
            parts.append(replace(part, tag=tag))
        target.assemble(key, handle, parts)
    except BaseException:
        target.abort(key, handle)
        raise


class _Stream:
    """A blob's chunks as something to read from; it hashes what it gives."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, size: int, /) -> bytes:
        """Return ``size`` bytes, fewer only at the end."""
        pieces = []
        while size:
            if not self._left:
                self._left = next(self._chunks, b"")
                if not self._left:
                    break
            piece, self._left = self._left[:size], self._left[size:]
            size -= len(piece)
            pieces.append(piece)
        data = b"".join(pieces)
        self._digest.update(data)
        self.size += len(data)
        return data

    def drain(self) -> None:
        """Read to the end, for the digest alone."""
        while self.read(CHUNK):
            pass


class _Limited:
    """The next bytes of a stream, as if it ended after them."""

    def __init__(self, stream: _Stream, size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(min(size, self._left))
        self._left -= len(data)
        return data
