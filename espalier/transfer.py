"""Moving blobs between a machine and the control plane, the same for CLI and worker.

Under a prefix (``/api/v1`` for people, ``/agent/v1`` for workers):

==========================================  ================================================
``POST /blobs/missing``                     which of these are not in the store yet
``POST /uploads``                           begin or take up again: upload id, parts received
``POST /uploads/ahead``                     the same of a file whose sha256 is not known yet
``PUT /uploads/{id}/parts/{number}``        one part, from 1, each ``part_size`` but the last
``POST /uploads/{id}/complete``             verify and keep; 422 when the sha256 is another
``GET /blobs/{sha256}``                     the bytes; supports Range
==========================================  ================================================

A file is hashed before it is sent, a large one that the server cannot have while it is
(espalier.sending), and again while it arrives; nothing that is already there travels. Parts of one
large file go several at a time in both directions, each read and written in small pieces, so that
memory stays flat. Both directions resume in another process: the server knows the parts of an open
upload, and a download's bytes wait beside their target (espalier.parts).
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from espalier.bandwidth import Limits, of_process
from espalier.client import Client
from espalier.clone import clone
from espalier.errors import EspalierError, Unavailable
from espalier.locked import locked
from espalier.messages import FileEntry
from espalier.parts import NOTE, Part, Range, forget
from espalier.refs import check_path
from espalier.sending import AHEAD, Line, Sending, digest, outline
from espalier.together import PARALLEL, Progress, each, silent

#: A larger file comes in ranges of this many bytes, several at a time.
SPAN = 64 << 20
#: Blobs asked for in one question.
ASK = 1000


class _NoRanges(Exception):
    """The server sent all of a file where a piece was asked for."""


def files_below(directory: Path) -> dict[Path, str]:
    """Return every file below ``directory``, in order, and its path inside.

    Names that begin with a dot are left out. Raises InvalidInput for an unsafe name.
    """
    found: dict[Path, str] = {}
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            found[path] = check_path(inside.as_posix())
    return found


def scan(
    directory: Path, progress: Progress = silent, known: Iterable[FileEntry] = ()
) -> tuple[FileEntry, ...]:
    """Return every file of `files_below`, hashed, but for those ``known``, in order of path."""
    found = files_below(directory)
    entries = {directory / entry.path: entry for entry in known}

    def enter(path: Path, moved: Progress) -> None:
        sha256, size = digest(path, moved)
        entries[path] = FileEntry(path=found[path], sha256=sha256, size=size)

    unknown = [path for path in found if path not in entries]
    each(enter, unknown, progress, min(PARALLEL, os.cpu_count() or 1))
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
        self._line = Line(client, f"{prefix}/uploads", self._limits.up)

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
        Sending(self._line, path, entry.size, progress).blob(entry)

    def new_to_it(self, directory: Path) -> dict[str, tuple[str, int]]:
        """Return large files that the server cannot have: path → outline and bytes."""
        found: dict[str, tuple[str, int]] = {}
        for path, name in files_below(directory).items():
            if path.stat().st_size >= AHEAD:
                known_as = outline(path)
                if self._line.begin_ahead(*known_as)["upload_id"] is not None:
                    found[name] = known_as
        return found

    def send(
        self, directory: Path, files: Mapping[str, tuple[str, int]], progress: Progress = silent
    ) -> tuple[FileEntry, ...]:
        """Upload files of `new_to_it` while they are hashed; return the entries of those.

        One that turns out to be there, or changed meanwhile, is left out: it is hashed first and
        pushed. Raises as `push` does; called again, it goes on where it stopped.
        """
        sent: list[FileEntry] = []
        for path, (known_as, size) in files.items():
            sha256 = Sending(self._line, directory / path, size, progress).ahead(known_as)
            if sha256 is not None:
                sent.append(FileEntry(path=path, sha256=sha256, size=size))
        return tuple(sent)

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
        with self._line.slots, self._client.download(url, headers) as body:
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
