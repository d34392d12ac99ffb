"""Moving blobs between a machine and the control plane, the same for CLI and worker.

Under a prefix (``/api/v1`` for people, ``/agent/v1`` for workers):

==========================================  ================================================
``POST /blobs/missing``                     which of these are not in the store yet
``POST /uploads``                           begin or take up again: upload id, parts received
``PUT /uploads/{id}/parts/{number}``        one part, from 1, each ``part_size`` but the last
``POST /uploads/{id}/complete``             verify and keep; 422 when the sha256 is another
``GET /blobs/{sha256}``                     the bytes; supports Range
==========================================  ================================================

A file is hashed before it is sent and after it has arrived, and nothing that is already there
travels. Both directions resume in another process: the server knows the parts of an open upload,
and a download's bytes wait beside their target as ``.<sha256>.part``.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

from espalier.client import Client
from espalier.errors import EspalierError, InvalidInput, NotFound, Unavailable
from espalier.messages import FileEntry
from espalier.refs import check_path

CHUNK = 1 << 20
#: Files that travel at the same time: enough to fill a LAN, few enough for a small server.
PARALLEL = 4
#: Blobs asked for in one question.
ASK = 1000
#: Times an upload is begun afresh when its parts or its end were lost on the way.
ROUNDS = 3

#: Called with bytes moved since the last call, from several threads, negative when bytes have to
#: travel again. What it raises stops the transfer.
Progress = Callable[[int], None]


def _silent(moved: int) -> None:
    del moved


def digest(path: Path) -> tuple[str, int]:
    """Return the file's sha256 in hexadecimal and its size in bytes."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
        return found.hexdigest(), file.tell()


def scan(directory: Path) -> tuple[FileEntry, ...]:
    """Return every file below ``directory``, hashed, in order of path.

    Names that begin with a dot are left out. Raises InvalidInput for an unsafe name.
    """
    entries = []
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            sha256, size = digest(path)
            entries.append(FileEntry(path=check_path(inside.as_posix()), sha256=sha256, size=size))
    return tuple(entries)


class Transfer:
    """Uploads and downloads of one control plane."""

    def __init__(self, client: Client, prefix: str = "/api/v1") -> None:
        self._client = client
        self._prefix = prefix

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
        self, directory: Path, entries: Iterable[FileEntry], progress: Progress = _silent
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
        each(
            lambda sha256: self.push_file(*paths[sha256], progress),
            sorted(missing & paths.keys()),
        )
        return sent

    def push_file(self, path: Path, entry: FileEntry, progress: Progress = _silent) -> None:
        """Upload one file as the blob ``entry``; parts the server has are not sent again."""
        trust_received = True
        for tries_left in reversed(range(ROUNDS)):
            try:
                received = self._push_once(path, entry, progress, trust_received)
            except (NotFound, Unavailable):  # the upload expired, or its end was lost on the way
                if not tries_left:
                    raise
            except InvalidInput:  # a part received earlier may be the wrong one
                if not tries_left or digest(path) != (entry.sha256, entry.size):
                    raise
                trust_received = False
            else:
                progress(received)
                return

    def _push_once(
        self, path: Path, entry: FileEntry, progress: Progress, trust_received: bool
    ) -> int:
        """Return the bytes that did not have to travel."""
        opened = self._client.post(
            f"{self._prefix}/uploads",
            {"sha256": entry.sha256, "size": entry.size},
            idempotent=True,
        )
        if opened["upload_id"] is None:
            return entry.size
        upload, part_size = f"{self._prefix}/uploads/{opened['upload_id']}", opened["part_size"]
        received = {part["number"]: part["size"] for part in opened["parts"]}
        spared = 0
        for number, start in enumerate(range(0, entry.size, part_size), 1):
            size = min(part_size, entry.size - start)
            if trust_received and received.get(number) == size:
                spared += size
            else:
                self._push_part(f"{upload}/parts/{number}", path, start, size, progress)
        self._client.post(f"{upload}/complete", idempotent=True)  # a large one: asked repeatedly
        return spared

    def _push_part(self, url: str, path: Path, start: int, size: int, progress: Progress) -> None:
        sent = 0

        def body() -> Iterator[bytes]:
            nonlocal sent
            progress(-sent)
            sent = 0
            for chunk in _read(path, start, size):
                yield chunk
                sent += len(chunk)
                progress(len(chunk))

        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        self._client.send("PUT", url, content=body, headers=headers)

    def pull(
        self, directory: Path, entries: Iterable[FileEntry], progress: Progress = _silent
    ) -> None:
        """Download the entries into ``directory``; files that are already right stay."""
        found = [(entry, directory / check_path(entry.path)) for entry in entries]
        each(lambda item: self.pull_file(item[0], item[1], progress), found)

    def pull_file(self, entry: FileEntry, target: Path, progress: Progress = _silent) -> None:
        """Download the blob ``entry`` to ``target``, which appears complete and verified.

        Raises NotFound when the store lacks it, Unavailable when the control plane stays away,
        EspalierError when the bytes are wrong twice.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / f".{entry.sha256}.part"
        with _locked(part) as file:
            if target.is_file() and digest(target) == (entry.sha256, entry.size):
                part.unlink()
                progress(entry.size)
                return
            progress(file.seek(0, os.SEEK_END))
            for tries_left in (1, 0):
                self._client.retrying(lambda: self._pull_rest(entry, file, progress))
                file.seek(0)
                if hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256:
                    break
                progress(-entry.size)
                file.truncate(0)
                if not tries_left:
                    part.unlink()
                    raise EspalierError(
                        f"The bytes received for {entry.path} are not sha256 {entry.sha256}.",
                        hint="The stored blob is damaged: publish the artifact again.",
                    )
            os.fsync(file.fileno())
            part.replace(target)

    def _pull_rest(self, entry: FileEntry, file: BufferedRandom, progress: Progress) -> None:
        have = file.seek(0, os.SEEK_END)
        if have == entry.size:
            return
        headers = {"Accept-Encoding": "identity"}  # a range of compressed bytes is no range
        if 0 < have < entry.size:
            headers["Range"] = f"bytes={have}-"
        with self._client.stream(
            f"{self._prefix}/blobs/{entry.sha256}", headers=headers
        ) as response:
            if response.status_code != 206 and have:
                file.truncate(0)
                progress(-have)
            for chunk in response.iter_bytes():
                file.write(chunk)
                progress(len(chunk))
        have = file.seek(0, os.SEEK_END)
        if have < entry.size:
            raise Unavailable(f"{entry.path}: only {have} of {entry.size} bytes arrived.")


def _read(path: Path, start: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while size > 0:
            chunk = file.read(min(CHUNK, size))
            if not chunk:
                raise InvalidInput(f"{path} became shorter while it was uploaded.")
            size -= len(chunk)
            yield chunk


def each(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call ``work`` with each item, some at a time; the first error ends it."""
    pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="transfer")
    try:
        for future in [pool.submit(work, item) for item in items]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _locked(part: Path) -> Iterator[BufferedRandom]:
    """Open ``part`` for this process alone; another that wants the same blob waits here."""
    while True:
        with part.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held the lock may have finished and moved the file away under its name.
            if part.exists() and part.stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield file
                return
