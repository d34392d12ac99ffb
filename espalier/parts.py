"""A download under way: bytes at their places, a record of which are there, and their sha256.

Beside ``.<sha256>.part`` lies ``.<sha256>.ranges`` where pieces arrive in any order: a line
``start stop`` for each that was written. Without it the file is a beginning, and its length says
how much is there. Neither is waited for on the disk: the whole is hashed before it is taken, so
that a record that says too much costs another download and nothing else.
"""

import hashlib
import os
import threading
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Bytes hashed at once.
_CHUNK = 1 << 20
#: Bytes after which it is written down that they are there: what a kill costs, for each stream.
NOTE = 8 << 20

Range = tuple[int, int]


class Part:
    """The open ``.part`` of a blob. Methods may be called from several threads."""

    def __init__(self, fd: int, path: Path, size: int, *, in_ranges: bool) -> None:
        """``in_ranges``: pieces may come in any order; else each follows the one before."""
        self._fd = fd
        self._record = path.with_suffix(".ranges")
        self._size = size
        self._in_ranges = in_ranges
        self._changed = threading.Condition()
        self._have: list[Range] = []
        self._open()

    def _open(self) -> None:
        length = os.fstat(self._fd).st_size
        if length > self._size:
            length = 0
            os.ftruncate(self._fd, 0)
        recorded = self._record.exists()
        if recorded and length == self._size:
            for start, stop in _read(self._record):
                self._merge(start, min(stop, self._size))
        elif length and not recorded:
            self._merge(0, length)
        if self._in_ranges:
            # The record first: a file of full length without one would count as whole.
            self._record.write_text("".join(f"{a} {b}\n" for a, b in self._have), "ascii")
            os.ftruncate(self._fd, self._size)
        elif recorded:  # with holes: nothing of it can be appended to
            self._have = []
            os.ftruncate(self._fd, 0)
            self._record.unlink()

    @property
    def there(self) -> int:
        """How many bytes have come."""
        with self._changed:
            return sum(stop - start for start, stop in self._have)

    @property
    def whole(self) -> bool:
        return self.there == self._size

    def gaps(self, longest: int) -> list[Range]:
        """Return what is missing, in order, in pieces of at most ``longest`` bytes."""
        found: list[Range] = []
        with self._changed:
            at = 0
            for start, stop in [*self._have, (self._size, self._size)]:
                found += [(a, min(a + longest, start)) for a in range(at, start, longest)]
                at = stop
        return found

    def write(self, offset: int, data: bytes) -> None:
        """Put ``data`` at its place."""
        view = memoryview(data)
        at = offset
        while view:
            written = os.pwrite(self._fd, view, at)
            view, at = view[written:], at + written
        with self._changed:
            self._merge(offset, at)
            self._changed.notify_all()

    def note(self, start: int, stop: int) -> None:
        """Write down, for another process, that these bytes are there."""
        if self._in_ranges and stop > start:
            with self._record.open("a", encoding="ascii") as record:
                record.write(f"{start} {stop}\n")

    def reset(self) -> None:
        """Forget everything that has come."""
        with self._changed:
            self._have = []
            os.ftruncate(self._fd, 0)
            if self._in_ranges:
                self._record.write_text("", "ascii")
                os.ftruncate(self._fd, self._size)

    def _merge(self, start: int, stop: int) -> None:
        if not 0 <= start < stop:
            return
        insort(self._have, (start, stop))
        merged: list[Range] = []
        for a, b in self._have:
            if merged and a <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
            else:
                merged.append((a, b))
        self._have = merged

    @contextmanager
    def hashing(self) -> Iterator["Hashing"]:
        """Hash what has come, from the start, while the rest comes."""
        hashing = Hashing(self)
        if self._size > _CHUNK:  # what is small is not worth a thread
            hashing.start()
        try:
            yield hashing
        finally:
            hashing.end()

    def wait_for(self, at: int, ended: threading.Event) -> int:
        """Wait for bytes behind ``at``; return where those without a gap before them stop."""

        def prefix() -> int:
            return self._have[0][1] if self._have and self._have[0][0] == 0 else 0

        with self._changed:
            self._changed.wait_for(lambda: prefix() > at or ended.is_set())
            return prefix()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._fd, size, start)


class Hashing(threading.Thread):
    """Runs behind a download: the file is still in memory, and the end comes at once."""

    def __init__(self, part: Part) -> None:
        super().__init__(name="hash", daemon=True)
        self._part = part
        self._ended = threading.Event()
        self._failed: BaseException | None = None
        self._hash = hashlib.sha256()
        self._at = 0

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                self._follow(self._part.wait_for(self._at, self._ended))
        except OSError as error:
            self._failed = error

    def _follow(self, stop: int) -> None:
        while self._at < stop:
            data = self._part.read(self._at, min(_CHUNK, stop - self._at))
            if not data:
                return
            self._hash.update(data)
            self._at += len(data)

    def end(self) -> None:
        self._ended.set()
        self._part.wake()
        if self.ident is not None:
            self.join()

    def digest(self, size: int) -> str:
        """Return the sha256 of the first ``size`` bytes, which are all there. Ends the thread."""
        self.end()
        if self._failed:
            raise self._failed
        self._follow(size)
        return self._hash.hexdigest()


def forget(path: Path) -> None:
    """Remove a ``.part`` and its record, as far as they are there."""
    path.unlink(missing_ok=True)
    path.with_suffix(".ranges").unlink(missing_ok=True)


def _read(record: Path) -> Iterator[Range]:
    """Yield the whole lines of a record; the last may be cut off."""
    for line in record.read_text("ascii", errors="replace").splitlines(keepends=True):
        start, _, stop = line.partition(" ")
        if line.endswith("\n") and start.isdecimal() and stop.strip().isdecimal():
            yield int(start), int(stop)
