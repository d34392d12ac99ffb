"""A copy of a file that shares its blocks, where the file system can: APFS, btrfs, XFS.

The copy is a file of its own: who writes into it changes nothing elsewhere, unlike a hard link.
Where blocks cannot be shared the bytes are copied.
"""

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

#: ``FICLONE`` of <linux/fs.h>: the whole of one file becomes the whole of another.
_FICLONE = 0x40049409
#: What a system says where blocks cannot be shared: not this file system, kernel, or pair of disks.
_CANNOT = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
        errno.ENOTTY,
        errno.ENOSYS,
        errno.EINVAL,
        errno.EXDEV,
        errno.EPERM,
        errno.EBADF,
        errno.ETXTBSY,
    }
)


def clone(source: Path, target: Path, mode: int = 0o644, *, copy: bool = True) -> bool:
    """Make ``target``, which does not exist, a copy of ``source``; say whether it shares blocks.

    Without ``copy`` there is no ``target`` where blocks cannot be shared.
    ``mode`` are the copy's permissions, less the user's umask. Raises FileExistsError when
    ``target`` is there, FileNotFoundError when ``source`` is not, OSError for a full disk; nothing
    is left at ``target`` then.
    """
    with source.open("rb") as original:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(fd, "wb") as fresh:
                if _share(original.fileno(), fresh.fileno()):
                    return True
                if _system() != "darwin" and copy:
                    shutil.copyfileobj(original, fresh, 1 << 20)
            if _system() == "darwin" and _clone_on_macos(source, target, mode, copy):
                return True
            if not copy:
                target.unlink()
            return False
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _system() -> str:
    return sys.platform  # a type checker would take the other systems' lines for dead


def _share(source: int, target: int) -> bool:
    """Let ``target`` share the blocks of ``source`` (file descriptors), on Linux."""
    if _system() != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _clone_on_macos(source: Path, target: Path, mode: int, copy: bool) -> bool:
    """The same by ``clonefile(2)``, which makes the file itself: it takes over the empty one."""
    allowed = target.stat().st_mode & mode
    fresh = target.with_name(f".{target.name}.clone-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    system = ctypes.CDLL(None, use_errno=True)
    try:
        if system.clonefile(os.fsencode(source), os.fsencode(fresh), 0) == 0:
            fresh.chmod(allowed)
            fresh.replace(target)
            return True
        code = ctypes.get_errno()
        if code not in _CANNOT:
            raise OSError(code, os.strerror(code), str(target))
        if copy:
            shutil.copyfile(source, target)
        return False
    finally:
        fresh.unlink(missing_ok=True)
