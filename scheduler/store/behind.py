"""Writing to the disk while more comes: at a part's end little is left to wait for."""

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import IO, Any

from espalier import disk

#: Bytes after which what was written is sent to the disk.
STEP = 16 << 20
_flush_data = getattr(os, "fdatasync", os.fsync)
_pool = ThreadPoolExecutor(4, thread_name_prefix="behind")


class Behind:
    """Sends what is written to ``file`` to the disk, a step behind. Leave it before the file."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file
        self._fresh = 0
        self._flushing: Future[None] | None = None

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, *error: object) -> None:
        if self._flushing is not None:  # until then the file's number must be nobody else's
            wait([self._flushing])

    def wrote(self, size: int) -> None:
        """Note bytes that were written just now. Raises OSError for those before."""
        self._fresh += size
        if self._fresh < STEP or not (self._flushing is None or self._flushing.done()):
            return
        self._check()
        self._fresh = 0
        self._flushing = _pool.submit(_flush_data, self._file.fileno())

    def finish(self) -> None:
        """Have all of it on the disk. Raises OSError, also for what was written before."""
        self._check()
        disk.flush(self._file)

    def _check(self) -> None:
        if self._flushing is not None:
            self._flushing.result()
