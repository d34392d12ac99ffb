"""Reports that the control plane has not acknowledged yet, in order, in one file.

On disk, so that an outage of hours costs no memory. It ends with its attempt: what an attempt did
after its last checkpoint is done again by the next one, and reported again.
"""

import os
from collections import deque
from pathlib import Path

from espalier.messages import Report

#: Bytes above which reports are kept without their log text; events are always kept.
MAX_BYTES = 64 << 20


class Spool:
    """A file of JSON lines, appended to and read from its beginning by one thread."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._file = path.open("a+b")
        self._file.truncate(0)
        self._waiting: deque[tuple[int, int]] = deque()
        self._end = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, report: Report) -> None:
        if self._end > self._max_bytes and report.log:
            report = report.model_copy(update={"log": ()})
        line = report.model_dump_json(exclude_none=True).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError:  # a full disk: whatever of the line was written must not stay
            self._file.truncate(self._end)
            raise
        self._waiting.append((self._end, len(line)))
        self._end += len(line)

    def head(self) -> Report | None:
        """Return the oldest report, or None when all are acknowledged."""
        if not self._waiting:
            return None
        offset, size = self._waiting[0]
        return Report.model_validate_json(os.pread(self._file.fileno(), size, offset))

    def pop(self) -> None:
        """Strike off the oldest report."""
        self._waiting.popleft()
        if not self._waiting:
            self._file.truncate(0)
            self._end = 0

    def close(self) -> None:
        self._file.close()
