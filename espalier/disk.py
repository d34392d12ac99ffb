"""What makes written bytes survive a crash."""

import fcntl
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


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
