"""Blobs from other workers of the LAN: tried first, never relied upon.

Whatever a sibling does wrong, the control plane has the same bytes: a sibling that is away, slow,
or sends something else costs a little time and no attempt. What it sent and what is still missing
add up in the same unfinished file, and the whole is hashed before it counts.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from espalier.bandwidth import of_process
from espalier.client import Client
from espalier.errors import EspalierError, NotFound
from espalier.messages import FileEntry, Source
from espalier.together import Progress
from espalier.transfer import Transfer
from worker.disk import sync

log = logging.getLogger("worker")

#: Seconds to wait for a sibling's next bytes, and after which its pace is judged.
READ_TIMEOUT, JUDGED_AFTER = 5.0, 10.0
#: Bytes a second below which the control plane is asked instead.
SLOW = 1 << 20


class _Slow(Exception):
    """The sibling sends, and not fast enough."""


class Siblings:
    """Where one attempt's blobs lie beside the control plane. Safe to share between threads."""

    def __init__(
        self, sources: Iterable[Source], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources: dict[str, list[Source]] = {}
        for source in sources:
            self._sources.setdefault(source.sha256, []).append(source)
        self._given_up: set[str] = set()
        self._clock = clock

    def fetch(self, entry: FileEntry, path: Path, progress: Progress) -> bool:
        """Bring the blob to ``path``, verified; say whether a sibling could.

        Raises what ``progress`` raises, and OSError for this machine's disk.
        """
        for source in self._sources.get(entry.sha256, ()):
            if source.url in self._given_up:
                continue
            try:
                self._fetch(source, entry, path, progress)
            except NotFound:  # thrown out since
                log.info("%s has no blob %s any more", source.name, entry.sha256)
            except (EspalierError, _Slow) as error:
                self._given_up.add(source.url)
                again = "%s: from the control plane, not from %s: %s"
                log.warning(again, entry.path, source.name, error)
            else:
                log.info("%s (%d bytes) came from %s", entry.path, entry.size, source.name)
                return True
        return False

    def _fetch(self, source: Source, entry: FileEntry, path: Path, progress: Progress) -> None:
        pace = _Pace(progress, self._clock)
        with Client(
            source.url, source.ticket, backoff=(), read_timeout=READ_TIMEOUT, direct=True
        ) as client:
            transfer = Transfer(client, "", sync=sync, mode=0o444, rounds=1)
            try:
                transfer.pull_file(entry, path, pace.moved)
            except Exception:
                progress(-pace.done)
                raise


class _Pace:
    """Counts what a sibling sends, and ends a transfer that crawls."""

    def __init__(self, progress: Progress, clock: Callable[[], float]) -> None:
        self._progress, self._clock = progress, clock
        self._lock = threading.Lock()
        self._begun = clock()
        self._there: int | None = None  # before it sent anything
        self.done = 0
        limit = of_process().down.rate
        self._least = SLOW if limit is None else min(SLOW, limit // 8)

    def moved(self, count: int) -> None:
        self._progress(count)
        with self._lock:
            if self._there is None:
                self._there = count
            self.done += count
            seconds = self._clock() - self._begun
            sent = self.done - self._there
        if seconds > JUDGED_AFTER and sent < seconds * self._least:
            raise _Slow(f"{sent:,} bytes in {seconds:.0f} s")
