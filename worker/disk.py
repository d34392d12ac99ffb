"""What has to be on the disk still when this process, or the machine, was ended without warning.

Lines carry a checksum: one that was cut in the middle is never read as something else. Files are
replaced whole, and written through to the disk before their name is given to them.
"""

import errno
import fcntl
import os
import zlib
from contextlib import suppress
from pathlib import Path

#: No space left, or the user's share of it is used up.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_full(error: BaseException | None) -> bool:
    """Say whether the disk had no room: the error itself, or what caused it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


def pack(body: bytes) -> bytes:
    """Return ``body``, which has no line end, as a line with its checksum."""
    return b"%08x %b\n" % (zlib.crc32(body), body)


def unpack(line: bytes) -> bytes | None:
    """Return the body of a line, or None when it is not whole."""
    checksum, space, body = line.removesuffix(b"\n").partition(b" ")
    if not space or not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    return body


def sync(fd: int) -> None:
    """Wait until what was written to ``fd`` is on the disk itself."""
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync stops at the drive's own cache
    if full is not None:
        with suppress(OSError):  # a network volume knows no such thing
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def sync_path(path: Path) -> None:
    """The same for a file or a directory (its names) that nobody has open."""
    fd = os.open(path, os.O_RDONLY)
    try:
        sync(fd)
    finally:
        os.close(fd)


def sync_tree(directory: Path) -> None:
    """The same for everything below ``directory`` and for its own name."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir() or path.is_file():
            sync_path(path)
    sync_path(directory)
    sync_path(directory.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Make ``path`` hold ``content``: all of it or, after a crash, what was there before."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        sync(file.fileno())
    fresh.replace(path)
    sync_path(path.parent)
