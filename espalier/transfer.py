"""Moving blobs between a machine and the control plane, the same for CLI and worker.

Under a prefix (``/api/v1`` for people, ``/agent/v1`` for workers):

==========================================  ================================================
``POST /blobs/missing``                     which of these are not in the store yet
``POST /uploads``                           begin or take up again: upload id, parts received
``PUT /uploads/{id}/parts/{number}``        one part, from 1, each ``part_size`` but the last
``POST /uploads/{id}/complete``             verify and keep; 422 when the sha256 is another
``GET /blobs/{sha256}``                     the bytes; supports Range
==========================================  ================================================

A file is hashed before it is sent and while it arrives, and nothing that is already there
travels. Parts of one large file go several at a time in both directions, each read and written in
small pieces, so that memory stays flat. Both directions resume in another process: the server
knows the parts of an open upload, and a download's bytes wait beside their target
(espalier.parts).
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from espalier.bandwidth import Limits, of_process
from espalier.client import Client
from espalier.clone import clone
from espalier.errors import EspalierError, InvalidInput, NotFound, Unavailable
from espalier.locked import locked
from espalier.messages import FileEntry
from espalier.parts import NOTE, Part, Range, forget
from espalier.refs import check_path
from espalier.together import PARALLEL, Progress, each, silent

CHUNK = 1 << 20
#: A larger file comes in ranges of this many bytes, several at a time.
SPAN = 64 << 20
#: Blobs asked for in one question.
ASK = 1000
#: Times an upload is begun afresh when its parts or its end were lost on the way.
ROUNDS = 3


class _NoRanges(Exception):
    """The server sent all of a file where a piece was asked for."""


def digest(path: Path, progress: Progress = silent) -> tuple[str, int]:
    """Return the file's sha256 in hexadecimal and its size in bytes."""
    found, size = hashlib.sha256(), 0
    view = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            found.update(view[:count])
            size += count
            progress(count)
    return found.hexdigest(), size


def scan(directory: Path, progress: Progress = silent) -> tuple[FileEntry, ...]:
    """Return every file below ``directory``, hashed, in order of path.

    Names that begin with a dot are left out. Raises InvalidInput for an unsafe name.
    """
    found: dict[Path, str] = {}
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            found[path] = check_path(inside.as_posix())
    entries: dict[Path, FileEntry] = {}

    def enter(path: Path, moved: Progress) -> None:
        sha256, size = digest(path, moved)
        entries[path] = FileEntry(path=found[path], sha256=sha256, size=size)

    each(enter, found, progress, min(PARALLEL, os.cpu_count() or 1))
    return tuple(entries[path] for path in found)


def blob_path(root: Path, sha256: str) -> Path:
    """Return where a cache of blobs at ``root`` keeps one."""
    return root / sha256[:2] / sha256


class Transfer:
    """Uploads and downloads of one control plane."""

    def __init__(
        self,
        client: Client,
        prefix: str = "/api/v1",
        *,
        limits: Limits | None = None,
        sync: Callable[[int], None] | None = None,
        mode: int | None = None,
        rounds: int = 2,
    ) -> None:
        """``limits`` are those of the process unless given.

        ``sync`` waits until an open file (its descriptor) is on the disk itself. A verified
        download gets its name only after that, and the permissions ``mode`` before. ``rounds``:
        times that wrong bytes are fetched.
        """
        self._client = client
        self._prefix = prefix
        self._limits = limits or of_process()
        self._sync, self._mode = sync, mode
        self._rounds = rounds
        self._slots = threading.BoundedSemaphore(PARALLEL)

    # --- Up -------------------------------------------------------------------------------

    def missing(self, entries: Iterable[FileEntry]) -> set[str]:
        """Return the sha256 of those entries that the store does not have."""
        sizes = {entry.sha256: entry.size for entry in entries}
        blobs = [{"sha256": sha256, "size": size} for sha256, size in sizes.items()]
        found: set[str] = set()
        for start in range(0, len(blobs), ASK):
            question = {"blobs": blobs[start : start + ASK]}
            answer = self._client.post(f"{self._prefix}/blobs/missing", question, idempotent=True)
            found.update(answer["missing"])
        return found

    def push(
        self, directory: Path, entries: Iterable[FileEntry], progress: Progress = silent
    ) -> int:
        """Upload the entries of ``directory`` that the store lacks; return the bytes sent.

        Raises InvalidInput when a file is no longer what its entry says, Unavailable when the
        control plane stays away; called again, it goes on where it stopped.
        """
        paths = {entry.sha256: (directory / entry.path, entry) for entry in entries}
        missing = self.missing(entry for _, entry in paths.values())
        sent = 0
        for sha256, (_, entry) in paths.items():
            if sha256 in missing:
                sent += entry.size
            else:
                progress(entry.size)
        wanted = sorted(missing & paths.keys())
        each(lambda sha256, moved: self.push_file(*paths[sha256], moved), wanted, progress)
        return sent

    def push_file(self, path: Path, entry: FileEntry, progress: Progress = silent) -> None:
        """Upload one file as the blob ``entry``; parts the server has are not sent again."""
        trust_received = True
        told: dict[int, int] = {}  # part → bytes of it that ``progress`` knows of
        for tries_left in reversed(range(ROUNDS)):
            try:
                self._push_once(path, entry, progress, told, trust_received)
            except (NotFound, Unavailable):  # the upload expired, or its end was lost on the way
                if not tries_left:
                    raise
            except InvalidInput:  # a part received earlier may be the wrong one
                if not tries_left or digest(path) != (entry.sha256, entry.size):
                    raise
                trust_received = False
            else:
                progress(entry.size - sum(told.values()))
                return

    def _push_once(
        self,
        path: Path,
        entry: FileEntry,
        progress: Progress,
        told: dict[int, int],
        trust_received: bool,
    ) -> None:
        opened = self._client.post(
            f"{self._prefix}/uploads",
            {"sha256": entry.sha256, "size": entry.size},
            idempotent=True,
        )
        if opened["upload_id"] is None:
            return
        upload, part_size = f"{self._prefix}/uploads/{opened['upload_id']}", opened["part_size"]
        received = {part["number"]: part["size"] for part in opened["parts"]}
        parts: list[tuple[int, int, int]] = []
        for number, start in enumerate(range(0, entry.size, part_size), 1):
            size = min(part_size, entry.size - start)
            if trust_received and received.get(number) == size:
                progress(size - told.get(number, 0))
                told[number] = size
            else:
                parts.append((number, start, size))
        each(lambda part, moved: self._push_part(upload, path, part, moved, told), parts, progress)
        self._client.post(f"{upload}/complete", idempotent=True)  # a large one: asked repeatedly

    def _push_part(
        self,
        upload: str,
        path: Path,
        part: tuple[int, int, int],
        progress: Progress,
        told: dict[int, int],
    ) -> None:
        number, start, size = part

        def body() -> Iterator[bytes]:
            progress(-told.get(number, 0))
            told[number] = 0
            for chunk in _read(path, start, size, self._limits.up.chunk):
                self._limits.up.take(len(chunk))
                yield chunk
                told[number] += len(chunk)
                progress(len(chunk))

        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with self._slots:
            self._client.send("PUT", f"{upload}/parts/{number}", content=body, headers=headers)

    # --- Down -----------------------------------------------------------------------------

    def pull(
        self,
        directory: Path,
        entries: Iterable[FileEntry],
        progress: Progress = silent,
        near: Path | None = None,
    ) -> None:
        """Download the entries into ``directory``; files that are already right stay.

        ``near`` is a cache of blobs on this machine: what it has is cloned, and verified.
        """
        targets: dict[str, list[tuple[FileEntry, Path]]] = {}
        for entry in entries:
            place = (entry, directory / check_path(entry.path))
            targets.setdefault(entry.sha256, []).append(place)

        def fetch(places: list[tuple[FileEntry, Path]], moved: Progress) -> None:
            entry, first = places[0]
            source = blob_path(near, entry.sha256) if near else None
            self.pull_file(entry, first, moved, source)
            for twin, target in places[1:]:  # the same bytes under another name
                self.pull_file(twin, target, moved, first)

        each(fetch, targets.values(), progress)

    def pull_file(
        self,
        entry: FileEntry,
        target: Path,
        progress: Progress = silent,
        source: Path | None = None,
    ) -> None:
        """Download the blob ``entry`` to ``target``, which appears complete and verified.

        ``source`` is a file of this machine that may be the blob, and is cloned then. Raises
        NotFound when the store lacks it, Unavailable when the control plane stays away,
        EspalierError when the bytes are wrong again and again.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        path = target.parent / f".{entry.sha256}.part"
        with locked(path) as fd:
            there = target.is_file() and digest(target) == (entry.sha256, entry.size)
            if there or (source and _cloned(source, entry, target)):
                forget(path)
                progress(entry.size)
                return
            part = Part(fd, path, entry.size, in_ranges=entry.size > SPAN)
            self._fill(part, path, entry, progress)
            if self._sync:
                self._sync(fd)
            if self._mode is not None:
                os.fchmod(fd, self._mode)
            path.replace(target)
            forget(path)

    def _fill(self, part: Part, path: Path, entry: FileEntry, progress: Progress) -> None:
        """Fetch what is missing; return when the part is the blob."""
        progress(part.there)
        longest, tries_left = SPAN, self._rounds
        while tries_left:
            tries_left -= 1
            with part.hashing() as hashing:
                try:
                    self._fetch(part, entry, longest, progress)
                except _NoRanges:
                    tries_left += longest < entry.size
                    longest = max(longest, entry.size)
                else:
                    if hashing.digest(entry.size) == entry.sha256:
                        return
            progress(-part.there)
            part.reset()
        forget(path)
        raise EspalierError(
            f"The bytes received for {entry.path} are not sha256 {entry.sha256}.",
            hint="The stored blob is damaged: publish the artifact again.",
        )

    def _fetch(self, part: Part, entry: FileEntry, longest: int, progress: Progress) -> None:
        """Fetch every gap, again where the way breaks, each time from where it broke."""

        def fill() -> None:
            gaps = part.gaps(longest)
            each(lambda gap, moved: self._fetch_range(part, entry, gap, moved), gaps, progress)
            if not part.whole:
                raise Unavailable(f"{entry.path}: only {part.there} of {entry.size} bytes arrived.")

        self._client.retrying(fill)

    def _fetch_range(self, part: Part, entry: FileEntry, gap: Range, progress: Progress) -> None:
        at, stop = gap
        noted, limit = at, self._limits.down
        headers = {} if gap == (0, entry.size) else {"Range": f"bytes={at}-{stop - 1}"}
        url = f"{self._prefix}/blobs/{entry.sha256}"
        with self._slots, self._client.download(url, headers) as body:
            if body.status != 206 and at:
                raise _NoRanges
            try:
                for received in body.pieces(limit.chunk):
                    piece = received[: stop - at]
                    part.write(at, piece)
                    at += len(piece)
                    progress(len(piece))
                    if at - noted >= NOTE:
                        part.note(noted, at)
                        noted = at
                    limit.take(len(piece))
                    if at == stop and headers and body.status != 206:
                        break  # all of the file was sent for its beginning
            finally:
                part.note(noted, at)


def _cloned(source: Path, entry: FileEntry, target: Path) -> bool:
    """Make ``target`` a clone of ``source`` if that is the blob; verified as it lies there."""
    fresh = target.with_name(f".{entry.sha256}.clone")
    try:
        if source.stat().st_size != entry.size:
            return False
        fresh.unlink(missing_ok=True)
        clone(source, fresh)
        if digest(fresh)[0] != entry.sha256:
            return False
        fresh.replace(target)
    except FileNotFoundError:  # a cache throws out what it likes
        return False
    finally:
        fresh.unlink(missing_ok=True)
    return True


def _read(path: Path, start: int, size: int, piece: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while size > 0:
            chunk = file.read(min(piece, size))
            if not chunk:
                raise InvalidInput(f"{path} became shorter while it was uploaded.")
            size -= len(chunk)
            yield chunk
