"""One download that many may read while it grows."""

import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from espalier.errors import EspalierError, StorageFull
from web.mirror.upstream import Upstream, UpstreamAway

log = logging.getLogger(__name__)

#: Breaks of the connection, one after the other without a byte between them, before it is given up.
MAX_BREAKS = 5
#: Seconds before the next try, times the breaks so far.
_PAUSE = 0.5
_CHUNK = 1 << 20


class _Digest:
    """The digest that a file's ETag is: sha256, or git's sha1 of a blob; any other is not known."""

    def __init__(self, etag: str, size: int) -> None:
        self._expected = etag
        self._hash = None
        if len(etag) == 64:
            self._hash = hashlib.sha256()
        elif len(etag) == 40:
            self._hash = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        if self._hash:
            self._hash.update(data)

    def agrees(self) -> bool:
        return self._hash is None or self._hash.hexdigest() == self._expected


class Flight:
    """A file on its way to ``target``: one request upstream, however many wait for it.

    It goes on where a broken connection, or a crashed server, left the part beside ``target``.
    The last byte is given to no reader before all of them are verified: who has a whole file has
    the right one.
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
        self._size = size
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        self._landed = landed
        self._changed = threading.Condition()
        self._have = 0  # bytes that may be read
        self._error: EspalierError | None = None
        self._done = False
        self._part.touch()
        # Stays readable when the part is renamed, for as long as somebody holds this flight.
        self._descriptor = os.open(self._part, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        threading.Thread(target=self._run, name=f"flight-{etag[:12]}", daemon=True).start()

    def begin(self) -> None:
        """Wait for the first bytes. Raises what kept them from coming."""
        with self._changed:
            self._changed.wait_for(lambda: self._have or self._done or self._error)
            if self._error:
                raise self._error

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
            self._fetch()
            self._part.replace(self._target)
            self._tell(self._size, done=True)
        except EspalierError as error:
            self._fail(error)
        except OSError as error:
            self._fail(StorageFull(f"The mirror cannot write {self._part.name}: {error}."))
        finally:
            self._landed()

    def _fetch(self) -> None:
        breaks = 0
        while True:
            begun = self._have
            try:
                digest = self._from_here()
                break
            except UpstreamAway as error:
                breaks = 1 if self._have > begun else breaks + 1
                if breaks >= MAX_BREAKS or not (self._have or self._part.stat().st_size):
                    raise
                log.warning("%s broke off at %d bytes: %s", self._path, self._have, error.detail)
                threading.Event().wait(_PAUSE * breaks)
        if not digest.agrees():
            self._part.unlink()
            raise UpstreamAway(
                f"{self._path} arrived with other bytes than {self._upstream.url} announced"
                f" (ETag {self._etag}); they were thrown away.",
                hint="Ask again.",
            )

    def _from_here(self) -> _Digest:
        """Add what is missing to the part. Raises UpstreamAway when less than all came."""
        digest = _Digest(self._etag, self._size)
        with self._part.open("r+b") as part:
            while data := part.read(_CHUNK):  # what an earlier try has left
                digest.update(data)
            have = part.tell()
            if have > self._size:
                have = 0
            if have < self._size:
                with self._upstream.stream(self._path, have) as (begin, chunks):
                    if begin != have:
                        part.seek(0)
                        part.truncate()
                        digest, have = _Digest(self._etag, self._size), 0
                        self._tell(0)
                    for data in chunks:
                        part.write(data)
                        part.flush()
                        digest.update(data)
                        have += len(data)
                        self._tell(min(have, self._size - 1))
            if have != self._size:
                raise UpstreamAway(f"{self._path}: {have} of {self._size} bytes came.")
        return digest

    def _tell(self, have: int, *, done: bool = False) -> None:
        with self._changed:
            self._have, self._done = max(have, 0), done
            self._changed.notify_all()

    def _fail(self, error: EspalierError) -> None:
        log.warning("%s: %s", self._path, error.detail)
        with self._changed:
            self._error = error
            self._changed.notify_all()
