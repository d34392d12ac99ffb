"""What a file system does for whole files: bytes that survive a crash, copies that cost nothing."""

import ctypes
import errno
import fcntl
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

#: Linux' ioctl that shares a whole file's blocks (btrfs, XFS, bcachefs, some NFS).
_FICLONE = 0x40049409
#: What answers it where blocks cannot be shared: another disk, a file system without it.
_NO_CLONES = frozenset(
    {
        errno.EXDEV,
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
        errno.ENOTTY,
        errno.EINVAL,
        errno.ENOSYS,
        errno.EPERM,
    }
)


def clone(source: Path, target: Path) -> bool:
    """Make ``target`` a file of its own with ``source``'s bytes, without copying them.

    The two share blocks until one of them is written to. False, and no ``target``, where the disk
    cannot do that: APFS, btrfs and XFS can. Raises FileExistsError and other OSErrors.
    """
    return _clonefile(source, target) if sys.platform == "darwin" else _ficlone(source, target)


def flush(file: IO[Any]) -> None:
    """Have the bytes on the disk itself: macOS' fsync stops at the drive's cache."""
    if sys.platform == "darwin":
        with suppress(OSError):  # not on every file system
            fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
            return
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make what was renamed into a folder stay there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clonefile(source: Path, target: Path) -> bool:
    if _libc().clonefile(os.fsencode(source), os.fsencode(target), 0) == 0:
        return True
    return _cannot(ctypes.get_errno(), target)


def _ficlone(source: Path, target: Path) -> bool:
    with source.open("rb") as file, target.open("xb") as fresh:
        try:
            fcntl.ioctl(fresh.fileno(), _FICLONE, file.fileno())
            return True
        except OSError as error:
            target.unlink()
            return _cannot(error.errno or 0, target)


def _cannot(code: int, target: Path) -> bool:
    if code in _NO_CLONES:
        return False
    raise OSError(code, os.strerror(code), str(target))


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
