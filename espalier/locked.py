"""A file that one process at a time works on, whatever becomes of its name meanwhile."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Open ``path`` for this thread alone, made if need be; yield its file descriptor.

    Another that wants the same waits here, until the file is closed.
    """
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Whoever held the lock may have finished and moved the file away under its name.
            if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
                yield fd
                return
        finally:
            os.close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # it was made read-only, and its process ended before it was moved
        path.chmod(0o644)
        return os.open(path, os.O_RDWR)
