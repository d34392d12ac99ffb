"""Reports that the control plane has not acknowledged yet, in order, in one file.

On disk, so that an outage of hours costs no memory and the end of the worker's process loses
none: its next start sends them with the same numbers, and the control plane drops those it had.
A line is ``CHECKSUM r SEQ JSON`` (a report) or ``CHECKSUM a ACKED LAST`` (all up to ACKED were
acknowledged, LAST is the highest number given). A line that is not whole is no line.

Each batch is written through to the disk before it is sent (fsync): batches are a few kilobytes
and at least a quarter of a second apart, and a machine that falls over would else lose up to half
a minute of a curve. Marks are not waited for: without one, reports are only sent twice.

Bounded: above ``max_bytes`` no more log text is taken; above twice that, which takes days, the
oldest log text goes first, then every second point of the curves, from old to new. Errors,
checkpoints, outputs and the end are never thrown out. A disk that is full holds nothing up: what
cannot be written waits in memory, within bounds, and is tried again with each batch.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from espalier.messages import Event, LogChunk, MetricsEvent, ProgressEvent, Report
from worker.disk import pack, sync, sync_path, unpack

log = logging.getLogger("worker")

#: Bytes above which no more log text is taken; events are.
MAX_BYTES = 64 << 20
#: Bytes that wait in memory while the disk is full.
MEMORY_BYTES = 8 << 20
#: Bytes of acknowledged reports above which an empty spool begins its file anew.
_COMPACT_BYTES = 1 << 20
#: Acknowledged reports between two marks.
_MARK_EVERY = 64
#: Times a spool is made smaller in one go, by half of its curves each.
_ROUNDS = 12

Change = Callable[[Report], Report | None]


@dataclass(slots=True)
class _Entry:
    """A report that waits: in the file at ``offset``, or in memory as ``line``."""

    seq: int
    size: int
    offset: int = -1
    line: bytes | None = None


class Spool:
    """A file of reports; takes up what an earlier process has left in it. Any thread."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._too_much = 2 * max_bytes
        self._lock = RLock()
        self._fd = _open(path)
        self._entries: deque[_Entry] = deque()
        self._unwritten: deque[_Entry] = deque()  # the last of the entries
        self._waiting = 0  # bytes of all entries
        self._in_memory = 0
        self._end = 0  # of the file
        self._acked = 0
        self._disk_full = False
        self.last_seq = 0
        self._load()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first_seq(self) -> int | None:
        """The number of the oldest report that waits; None when none does."""
        with self._lock:
            return self._entries[0].seq if self._entries else None

    @property
    def takes_log(self) -> bool:
        """Whether there is room for more log text."""
        return self._waiting <= self._max_bytes

    def append(self, report: Report) -> None:
        """Take a report, in memory; ``sync`` writes it down."""
        with self._lock:
            line = _line(report)
            entry = _Entry(report.seq, len(line), line=line)
            self._entries.append(entry)
            self._unwritten.append(entry)
            self._waiting += entry.size
            self._in_memory += entry.size
            self.last_seq = max(self.last_seq, report.seq)

    def sync(self) -> None:
        """Write down what is in memory, if the disk has room; keep within bounds."""
        with self._lock:
            try:
                self._write()
                if self._waiting > self._too_much:
                    self._shrink(self._max_bytes * 3 // 2, self._entries, self._rewrite)
                elif self._end - self._waiting > 2 * self._max_bytes:
                    self._rewrite(lambda report: report)
            except OSError as error:
                if not self._disk_full:
                    log.error("%s cannot be written, reports wait in memory: %s", self._path, error)
                self._disk_full = True
                if self._in_memory > MEMORY_BYTES:
                    target = self._waiting - self._in_memory + MEMORY_BYTES // 2
                    self._shrink(target, self._unwritten, self._remake)
                return
            if self._disk_full:
                log.info("%s can be written again", self._path)
                self._disk_full = False

    def head(self) -> Report | None:
        """Return the oldest report, or None when all are acknowledged."""
        with self._lock:
            while self._entries:
                report = self._read(self._entries[0])
                if report:
                    return report
                log.error("%s: report %d is damaged", self._path, self._entries[0].seq)
                self._drop_head()
            return None

    def pop(self) -> None:
        """Strike off the oldest report."""
        with self._lock:
            self._acked = max(self._acked, self._drop_head().seq)
            if self._entries and self._acked % _MARK_EVERY:
                return
            with suppress(OSError):  # without the mark they are sent again, and dropped there
                if not self._entries and self._end > _COMPACT_BYTES:
                    self._rewrite(lambda report: report)
                else:
                    self._put(self._mark())

    def close(self) -> None:
        """Keep what waits for the next process; there is none to come when all is acknowledged."""
        with self._lock:
            if self._fd >= 0:
                with suppress(OSError):
                    self._write()
                os.close(self._fd)
                self._fd = -1

    # --- The file -------------------------------------------------------------------------

    def _load(self) -> None:
        whole = 0
        with self._path.open("rb") as file:
            for line in file:
                body = unpack(line)
                if body:
                    self._note(body, file.tell() - len(line), len(line))
                    whole = file.tell()
                else:
                    log.warning("%s: a line that is not whole is left out", self._path)
            self._end = file.tell()
        if self._end > whole:
            os.ftruncate(self._fd, whole)
            self._end = whole
        while self._entries and self._entries[0].seq <= self._acked:
            self._drop_head()

    def _note(self, body: bytes, offset: int, size: int) -> None:
        kind, number, rest = body.split(b" ", 2)
        if kind == b"a":
            self._acked = max(self._acked, int(number))
            self.last_seq = max(self.last_seq, int(rest))
        elif int(number) > max(self._acked, self._entries[-1].seq if self._entries else 0):
            self._entries.append(_Entry(int(number), size, offset=offset))
            self._waiting += size
            self.last_seq = max(self.last_seq, int(number))

    def _mark(self) -> bytes:
        return pack(b"a %d %d" % (self._acked, self.last_seq))

    def _put(self, data: bytes) -> None:
        """Append ``data``, or nothing of it: what was written of a line must not stay."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            os.ftruncate(self._fd, self._end)
            raise
        self._end += len(data)

    def _write(self) -> None:
        """Append what is in memory, as one piece, and wait for the disk."""
        if not self._unwritten:
            return
        offset = self._end
        self._put(b"".join(entry.line or b"" for entry in self._unwritten))
        sync(self._fd)
        for entry in self._unwritten:
            entry.offset, entry.line = offset, None
            offset += entry.size
        self._unwritten.clear()
        self._in_memory = 0

    def _read(self, entry: _Entry) -> Report | None:
        line = entry.line
        if line is None:
            line = os.pread(self._fd, entry.size, entry.offset)
        body = unpack(line)
        return Report.model_validate_json(body.split(b" ", 2)[2]) if body else None

    def _drop_head(self) -> _Entry:
        entry = self._entries.popleft()
        self._waiting -= entry.size
        if self._unwritten and self._unwritten[0] is entry:
            self._unwritten.popleft()
            self._in_memory -= entry.size
        return entry

    # --- Bounds ---------------------------------------------------------------------------

    def _shrink(
        self, target: int, entries: Iterable[_Entry], apply: Callable[[Change], None]
    ) -> None:
        """Bring what waits down to ``target`` bytes by what ``entries`` can do without."""
        before = self._waiting
        cut = self._logs_to_drop(entries, self._waiting - target)
        if cut:
            apply(cut)
        for _ in range(_ROUNDS):
            size = self._waiting
            if size <= target:
                break
            apply(_Thinner())
            if self._waiting == size:
                break
        # What cannot go smaller is not tried again with each batch.
        self._too_much = max(2 * self._max_bytes, self._waiting * 5 // 4)
        log.warning("%s: %d of %d waiting bytes are kept", self._path, self._waiting, before)

    def _logs_to_drop(self, entries: Iterable[_Entry], surplus: int) -> "_LogCut | None":
        """Find the oldest log text that makes up ``surplus`` bytes."""
        first: LogChunk | None = None
        last, end, freed = 0, 0, 0
        for entry in entries:
            report = self._read(entry) if freed < surplus else None
            for chunk in report.log if report else ():
                first = first or chunk
                last, end = entry.seq, chunk.offset + len(chunk.text.encode())
                freed += len(chunk.text)
        return _LogCut(first.offset, last, end - first.offset) if first else None

    def _changed(self, change: Change) -> Iterator[tuple[int, bytes]]:
        for entry in self._entries:
            report = self._read(entry)
            changed = change(report) if report else None
            if changed:
                yield entry.seq, _line(changed)

    def _rewrite(self, change: Change) -> None:
        """Replace the file by one with the changed reports; those in memory go into it too."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        fresh.unlink(missing_ok=True)
        entries: deque[_Entry] = deque()
        try:
            with fresh.open("xb") as file:
                file.write(self._mark())
                for seq, line in self._changed(change):
                    entries.append(_Entry(seq, len(line), offset=file.tell()))
                    file.write(line)
                file.flush()
                sync(file.fileno())
                end = file.tell()
            fresh.replace(self._path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        with suppress(OSError):
            sync_path(self._path.parent)
        os.close(self._fd)
        self._fd, self._end = _open(self._path), end
        self._entries, self._unwritten = entries, deque()
        self._waiting, self._in_memory = sum(e.size for e in entries), 0

    def _remake(self, change: Change) -> None:
        """Change the reports that are in memory: the disk takes no others."""
        for entry in list(self._unwritten):
            report = self._read(entry)
            assert report is not None  # it is in memory
            line = _line(change(report) or report.model_copy(update={"events": ()}))
            self._waiting += len(line) - entry.size
            self._in_memory += len(line) - entry.size
            entry.line, entry.size = line, len(line)


@dataclass(slots=True)
class _LogCut:
    """Takes the log text out of the reports up to number ``last``, and says so where it began."""

    offset: int
    last: int
    dropped: int  # bytes

    def __call__(self, report: Report) -> Report | None:
        if not report.log or report.seq > self.last:
            return report
        note = f"\n[{self.dropped} bytes of log were dropped here: the control plane was away]\n"
        kept: tuple[LogChunk, ...] = ()
        if report.log[0].offset == self.offset and len(note) <= self.dropped:
            kept = (LogChunk(offset=self.offset, text=note),)
        return report.model_copy(update={"log": kept})


class _Thinner:
    """Takes out every second point of a curve, and progress: what is old by now tells nobody."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, report: Report) -> Report | None:
        kept = tuple(event for event in report.events if self._keeps(event))
        if not kept and not report.log:
            return None
        return report.model_copy(update={"events": kept})

    def _keeps(self, event: Event) -> bool:
        if isinstance(event, ProgressEvent):
            return False
        if not isinstance(event, MetricsEvent) or any(not _is_dense(k) for k in event.values):
            return True
        self._count += 1
        return self._count % 2 == 0


def _is_dense(name: str) -> bool:
    """Whether a value comes with every few steps; those of validation and tests are rare."""
    return not name.startswith(("val", "test", "perplexity"))


def _line(report: Report) -> bytes:
    body = report.model_dump_json(exclude_none=True).encode()
    return pack(b"r %d %b" % (report.seq, body))


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
