"""One download that many may read while it grows."""

import fcntl
import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from espalier import disk
from espalier.errors import EspalierError, StorageFull
from web.mirror.upstream import Upstream, UpstreamAway, UpstreamSpoilt

log = logging.getLogger(__name__)

#: Breaks of the connection, one after the other without a byte between them, before it is given up.
MAX_BREAKS = 5
#: Seconds before the next try, times the breaks so far.
_PAUSE = 0.5
#: Seconds between two looks at what another process fetches.
_LOOK = 0.1
_CHUNK = 1 << 20


class _Digest:
    """The digest that a file's ETag is: sha256, or git's sha1 of a blob."""

    def __init__(self, etag: str, size: int) -> None:
        self._expected = etag
        if len(etag) == 64:
            self._hash = hashlib.sha256()
        else:
            self._hash = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def agrees(self) -> bool:
        return self._hash.hexdigest() == self._expected


class Flight:
    """A file on its way to ``target``: one request upstream, however many wait for it.

    It goes on where a broken connection, or a crashed server, left the part beside ``target``.
    The last byte is given to no reader before all of them are verified: who has a whole file has
    the right one. Another process that wants the same file holds a flight of its own, which
    watches this one's part: whoever holds the part's lock fetches.
    """

    def __init__(
        self,
        upstream: Upstream,
        path: str,
        etag: str,
        size: int,
        target: Path,
        landed: Callable[[], None],
    ) -> None:
        self._upstream = upstream
        self._path = path
        self._etag = etag
        self.size = size
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        self._landed = landed
        self._changed = threading.Condition()
        self._have = 0  # bytes that may be read
        self._error: EspalierError | None = None
        self._done = False
        self._digest = _Digest(etag, size)
        self._file = os.fdopen(os.open(self._part, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        # Stays readable when the part is renamed, for as long as somebody holds this flight.
        self._descriptor = os.dup(self._file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        threading.Thread(target=self._run, name=f"flight-{etag[:12]}", daemon=True).start()

    @property
    def coming(self) -> int:
        """Bytes that are not on the disk yet; there are those that an earlier try has left."""
        return max(0, self.size - os.fstat(self._descriptor).st_size)

    def begin(self) -> None:
        """Wait for the first bytes. Raises what kept them from coming."""
        with self._changed:
            self._changed.wait_for(lambda: self._have or self._done or self._error)
            if self._error:
                raise self._error

    def wait(self, seconds: float) -> bool:
        """Wait for the whole file; say whether it is here. Raises what kept it from coming."""
        with self._changed:
            self._changed.wait_for(lambda: self._done or self._error, seconds)
            if self._error:
                raise self._error
            return self._done

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to ``stop`` as they come."""
        while start < stop:
            ready = min(self._wait_beyond(start), stop)
            data = os.pread(self._descriptor, min(ready - start, _CHUNK), start)
            start += len(data)
            yield data

    def _wait_beyond(self, position: int) -> int:
        """Wait until there are bytes after ``position``; return where they end."""
        with self._changed:
            self._changed.wait_for(lambda: self._have > position or self._error)
            if self._error and self._have <= position:
                raise self._error
            return self._have

    def _run(self) -> None:
        try:
            with self._file as part:
                try:
                    if self._has_turn(part):
                        self._fetch(part)
                        disk.flush(part)
                        self._part.replace(self._target)
                finally:  # the readers' descriptor is the same open file: closing is not enough
                    fcntl.flock(part, fcntl.LOCK_UN)
            self._tell(self.size, done=True)
        except EspalierError as error:
            self._fail(error)
        except OSError as error:
            self._fail(StorageFull(f"The mirror cannot write {self._part.name}: {error}."))
        finally:
            self._landed()

    def _has_turn(self, part: BinaryIO) -> bool:
        """Wait while another process fetches this file; say whether it is still to be fetched."""
        while not _locked(part):
            self._tell(min(os.fstat(part.fileno()).st_size, self.size - 1))
            threading.Event().wait(_LOOK)
        if _is_at(part, self._target):
            return False
        if not _is_at(part, self._part):
            raise UpstreamSpoilt(
                f"{self._path} was given up by another process.", hint="Ask again."
            )
        return True

    def _fetch(self, part: BinaryIO) -> None:
        """Fill the part. Raises UpstreamAway, UpstreamRefusal, and UpstreamSpoilt."""
        while data := part.read(_CHUNK):  # what an earlier try has left
            self._digest.update(data)
            self._tell(part.tell())
        if part.tell() > self.size:
            self._begin_anew(part)
        breaks = 0
        while part.tell() < self.size:
            begun = part.tell()
            try:
                self._append(part)
            except UpstreamAway as error:
                breaks = 1 if part.tell() > begun else breaks + 1
                if breaks >= MAX_BREAKS or not part.tell():
                    raise
                log.warning("%s broke off at %d bytes: %s", self._path, part.tell(), error.detail)
                threading.Event().wait(_PAUSE * breaks)
        if not self._digest.agrees():
            raise self._spoilt(f"arrived with other bytes than announced (ETag {self._etag})")

    def _append(self, part: BinaryIO) -> None:
        """Add what is missing. Raises UpstreamAway when less than all came."""
        with self._upstream.stream(self._path, part.tell()) as (begin, chunks):
            if begin != part.tell():
                self._begin_anew(part)
            if begin != part.tell():
                raise self._spoilt(f"came from byte {begin}, which nobody asked for")
            for data in chunks:
                if part.tell() + len(data) > self.size:
                    raise self._spoilt(f"has more than the {self.size} bytes that were announced")
                part.write(data)
                part.flush()
                self._digest.update(data)
                self._tell(part.tell())
        if part.tell() < self.size:
            raise UpstreamAway(f"{self._path}: {part.tell()} of {self.size} bytes came.")

    def _begin_anew(self, part: BinaryIO) -> None:
        part.seek(0)
        part.truncate()
        self._digest = _Digest(self._etag, self.size)
        self._tell(0)

    def _spoilt(self, what: str) -> UpstreamSpoilt:
        self._part.unlink()
        return UpstreamSpoilt(
            f"{self._path} of {self._upstream.url} {what}; it was thrown away.", hint="Ask again."
        )

    def _tell(self, have: int, *, done: bool = False) -> None:
        with self._changed:
            self._have = have if done else max(min(have, self.size - 1), 0)
            self._done = done
            self._changed.notify_all()

    def _fail(self, error: EspalierError) -> None:
        log.warning("%s: %s", self._path, error.detail)
        with self._changed:
            self._error = error
            self._changed.notify_all()


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
