"""Objects as files below one directory: the embedded stack's store.

An upload is one file that its parts are written into at their offsets, so that nothing is copied
when it is complete. Files appear under their blob's name by rename, after fsync: what a crash
leaves is either a whole blob or something in ``staging/``.
"""

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from espalier import disk
from espalier.clone import clone
from espalier.errors import NotFound, StorageFull, Unavailable
from espalier.ids import new_id
from espalier.refs import check_path
from scheduler.store import claims
from scheduler.store.base import (
    CHUNK,
    FULL,
    STAGING,
    OpenParts,
    Part,
    Readable,
    Stored,
    UploadLost,
    chunks,
)
from scheduler.store.behind import Behind
from scheduler.store.claims import Claims


class Directory:
    """The driver for ``file://`` stores."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def place(self) -> str:
        return str(self.root)

    def limits(self) -> tuple[str, ...]:
        return ()

    def link(self, key: str, name: str | None = None) -> str | None:
        return None

    def probe(self) -> tuple[str, ...]:
        key = f"staging/probe-{new_id()}"
        self.put(key, b"espalier")
        try:
            if b"".join(self.open(key, 2, 3)) != b"pal":
                raise Unavailable(f"{self.root} does not give back what was written.")
        finally:
            self.delete(key)
        return ()

    def begin(self, key: str) -> str:
        handle = new_id()
        path = self._parts(key, handle)
        with self._reachable():
            _make_folder(path.parent)
            path.touch()
            claims.beside(path).touch()
        return handle

    def put_part(self, key: str, handle: str, part: Part, source: Readable) -> str:
        path, offset, tag = self._parts(key, handle), part.start, new_id()
        with self._open_parts(key, handle) as file, claims.opened(path) as puts:
            try:
                with Behind(file) as behind:
                    for chunk in chunks(source, part.size):
                        with self._reachable():
                            if not _write_part(file, path, puts, part.number, tag, chunk, offset):
                                raise _lost(key)
                            behind.wrote(len(chunk))
                        offset += len(chunk)
                    with self._reachable():
                        behind.finish()
            except StorageFull:
                _cut(file, part)
                raise
        return tag

    def assemble(self, key: str, handle: str, parts: Sequence[Part]) -> None:
        self.seal(key, handle, parts)

    def seal(self, key: str, handle: str, parts: Sequence[Part]) -> bool:
        """Assemble; return whether each part is certainly what the put of its tag wrote."""
        expected, path, sealed = sum(part.size for part in parts), self._parts(key, handle), False
        if self.size(key) == expected:
            return False
        with (
            self._open_parts(key, handle) as file,
            claims.opened(path) as puts,
            self._reachable(),
            _locked(file, fcntl.LOCK_EX),
        ):
            if file.seek(0, os.SEEK_END) == expected:
                sealed = _is_at(file, path) and puts.agree(parts)
                with suppress(FileNotFoundError):  # another call was quicker
                    path.replace(self._path(key))
                claims.beside(path).unlink(missing_ok=True)
        if self.size(key) != expected:
            raise _lost(key)
        return sealed

    def open_part(self, key: str, handle: str, part: Part) -> Iterator[bytes]:
        """Return a part's bytes as they are now. Raises UploadLost."""
        return self._read(self._open_parts(key, handle), part.start, part.size)

    def abort(self, key: str, handle: str) -> None:
        path = self._parts(key, handle)
        with self._reachable():
            path.unlink(missing_ok=True)
            claims.beside(path).unlink(missing_ok=True)

    def uploads(self) -> Iterator[OpenParts]:
        return iter(())  # their files are in the listing

    def move(self, source: str, target: str) -> None:
        path, final = self._path(source), self._path(target)
        with self._reachable():
            _make_folder(final.parent)
            try:
                with path.open("rb") as file, _locked(file, fcntl.LOCK_EX):
                    disk.flush(file)
                    path.replace(final)
            except FileNotFoundError:
                raise _absent(source) from None
            disk.sync_folder(final.parent)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._reachable():
            temporary = self._path(f"{STAGING}{new_id()}.put")
            for folder in (path.parent, temporary.parent):
                _make_folder(folder)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    disk.flush(file)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            disk.sync_folder(path.parent)

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._read(self.open_file(key), start, length)

    def open_file(self, key: str) -> BinaryIO:
        """Return the object's file, open for reading. Raises NotFound."""
        with self._reachable():
            try:
                return self._path(key).open("rb")
            except FileNotFoundError:
                raise _absent(key) from None

    def _read(self, file: BinaryIO, start: int, length: int | None) -> Iterator[bytes]:
        with file, self._reachable():
            file.seek(start)
            left = length
            while chunk := file.read(CHUNK if left is None else min(CHUNK, left)):
                if left is not None:
                    left -= len(chunk)
                yield chunk

    def size(self, key: str) -> int | None:
        with self._reachable():
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def delete(self, key: str) -> None:
        with self._reachable():
            self._path(key).unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[Stored]:
        with self._reachable():
            for path in (self.root / prefix).rglob("*"):
                with suppress(FileNotFoundError):  # moved or deleted while listing
                    facts = path.stat()
                    if path.is_file() and not claims.is_live(path):
                        modified = datetime.fromtimestamp(facts.st_mtime, UTC)
                        key = path.relative_to(self.root).as_posix()
                        yield Stored(key, facts.st_size, modified)

    def room(self) -> int | None:
        with suppress(OSError):
            facts = os.statvfs(_existing(self.root))
            return facts.f_bavail * facts.f_frsize
        return None

    def adopt(self, source: Path, key: str) -> bool:
        """Make ``source``, of the same disk, appear as ``key`` without copying it, by a hard link.

        False where the disk cannot. Nobody writes into a blob: the two never differ.
        """
        final = self._path(key)
        with self._reachable():
            _make_folder(final.parent)
            try:
                final.hardlink_to(source)
            except FileExistsError:
                return True
            except OSError as error:
                if error.errno in _NO_LINKS:
                    return False
                raise
            disk.sync_folder(final.parent)
            return True

    def take(self, source: Path, key: str) -> bool:
        """Make a clone of ``source``, of the same disk, appear as ``key``: it shares its blocks.

        False where the file system has none. The bytes are not looked at.
        """
        final = self._path(key)
        with self._reachable():
            _make_folder(final.parent)
            return clone(source, final, copy=False)

    def path_of(self, key: str) -> Path:
        """Return the file that holds ``key``, there or not."""
        return self._path(key)

    def _path(self, key: str) -> Path:
        return self.root / check_path(key)

    def _parts(self, key: str, handle: str) -> Path:
        return self._path(f"{key}.{handle}")

    def _open_parts(self, key: str, handle: str) -> BinaryIO:
        with self._reachable():
            try:
                return self._parts(key, handle).open("r+b")
            except FileNotFoundError:
                raise _lost(key) from None

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            room = self.room()
            free = "" if room is None else f" ({room >> 20} MiB free)"
            if error.errno in FULL:
                raise StorageFull(
                    f"The disk of the store in {self.root} is full{free}.",
                    hint="Make room there, or let garbage collection do it; then try again.",
                ) from error
            raise Unavailable(
                f"The store in {self.root} cannot be used: {error.strerror or error}{free}.",
                hint="Check that the folder exists, is writable and has room.",
            ) from error


#: Another disk, too many links, a file system without any.
_NO_LINKS = frozenset({errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP})


def _absent(key: str) -> NotFound:
    return NotFound(f"{key} is not in the store.")


def _lost(key: str) -> UploadLost:
    return UploadLost(f"The store has no open upload {key}.", hint="Begin the upload again.")


def _cut(file: BinaryIO, part: Part) -> None:
    """Give back the room of a part that did not fit, where it is the file's last."""
    with suppress(OSError), _locked(file, fcntl.LOCK_EX):
        if file.seek(0, os.SEEK_END) <= part.start + part.size:
            file.truncate(min(part.start, file.seek(0, os.SEEK_END)))


def _make_folder(path: Path) -> None:
    """Make a folder and those above it, so durably that what is in them is found again."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    disk.sync_folder(path.parent)


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def _write_part(
    file: BinaryIO, path: Path, puts: Claims, number: int, tag: str, data: bytes, offset: int
) -> bool:
    """Write as the put ``tag``, which claims the part first; False when the file is gone.

    A late writer must not reach a file that is being verified, or a blob.
    """
    with _locked(file, fcntl.LOCK_SH):
        if puts.are_held(number, tag):
            if there := _is_at(file, path):
                _write_at(file, data, offset)
            return there
    with _locked(file, fcntl.LOCK_EX):
        if there := _is_at(file, path):
            puts.hold(number, tag)
            _write_at(file, data, offset)
        return there


def _write_at(file: BinaryIO, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def _locked(file: BinaryIO, mode: int) -> Iterator[None]:
    fcntl.flock(file, mode)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
