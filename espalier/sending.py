"""One file on its way up: in parts, several at a time, over as many tries as it takes.

A file whose sha256 is known is begun under it. A large one that the server cannot have is begun
*ahead*: under an outline, and hashed while it is sent; its sha256 is told at the end. Both go on
in another process: the server knows the parts that it has.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from espalier.bandwidth import Limit
from espalier.client import Client
from espalier.errors import InvalidInput, NotFound, Unavailable
from espalier.messages import FileEntry
from espalier.together import PARALLEL, Progress, each, silent

#: Files from so many bytes on are sent before they are hashed.
AHEAD = 16 << 20
#: Times an upload is begun afresh when its parts or its end were lost on the way.
ROUNDS = 3
_CHUNK = 1 << 20


def digest(path: Path, progress: Progress = silent) -> tuple[str, int]:
    """Return the file's sha256 in hexadecimal and its size in bytes."""
    found, size = hashlib.sha256(), 0
    view = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            found.update(view[:count])
            size += count
            progress(count)
    return found.hexdigest(), size


def outline(path: Path) -> tuple[str, int]:
    """Return what a file is called before it is hashed, of a sha256's shape, and its bytes.

    It is made of the file's place, size and time and of its first and last MiB: the same in
    another process. Other bytes under the same outline are found out when all are hashed.
    """
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        found = hashlib.sha256(os.fsencode(path.resolve()))
        found.update(f"\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode("ascii"))
        found.update(file.read(_CHUNK))
        file.seek(max(0, facts.st_size - _CHUNK))
        found.update(file.read(_CHUNK))
    return found.hexdigest(), facts.st_size


class Line:
    """The way to one server's uploads; PARALLEL requests with bytes at a time."""

    def __init__(self, client: Client, uploads: str, limit: Limit) -> None:
        """``uploads`` is the path where they are begun."""
        self.client, self.uploads, self.limit = client, uploads, limit
        self.slots = threading.BoundedSemaphore(PARALLEL)

    def begin(self, name: str, size: int) -> Any:
        return self.client.post(self.uploads, {"sha256": name, "size": size}, idempotent=True)

    def begin_ahead(self, name: str, size: int) -> Any:
        """Begin under an outline; without an upload's id the file is to be hashed first."""
        body = {"outline": name, "size": size}
        try:
            return self.client.post(f"{self.uploads}/ahead", body, idempotent=True)
        except NotFound:  # a server that wants to know the sha256
            return {"upload_id": None}


class Sending:
    """One file that goes up. ``progress`` hears of its bytes from several threads."""

    def __init__(self, line: Line, path: Path, size: int, progress: Progress) -> None:
        self._line, self._path, self._size, self._progress = line, path, size, progress
        self._told: dict[int, int] = {}  # part → bytes of it that ``progress`` knows of

    def blob(self, entry: FileEntry) -> None:
        """Send it as the blob ``entry``; parts the server has are not sent again.

        Raises as `Transfer.push` does.
        """
        trusted = True
        for tries_left in reversed(range(ROUNDS)):
            try:
                self._once(self._line.begin(entry.sha256, self._size), trusted, lambda: None)
            except (NotFound, Unavailable):  # the upload expired, or its end was lost on the way
                if not tries_left:
                    raise
            except InvalidInput:  # a part received earlier may be the wrong one
                if not tries_left or digest(self._path) != (entry.sha256, entry.size):
                    raise
                trusted = False
            else:
                break
        self._progress(self._size - sum(self._told.values()))

    def ahead(self, name: str) -> str | None:
        """Send it under its outline, and hash it meanwhile; return its sha256.

        None when the server may have it, or got other bytes: it is to be hashed first, then sent.
        """
        with _hashing(self._path) as hashed:

            def named() -> dict[str, str]:
                sha256, size = hashed()
                if size != self._size:
                    raise InvalidInput(f"{self._path} changed while it was uploaded.")
                return {"sha256": sha256}

            for tries_left in reversed(range(ROUNDS)):
                try:
                    if self._once(self._line.begin_ahead(name, self._size), True, named):
                        return hashed()[0]
                    break
                except (NotFound, Unavailable):
                    if not tries_left:
                        raise
                except InvalidInput:  # a part from before the file changed: all is forgotten there
                    break
        self._progress(-sum(self._told.values()))
        return None

    def _once(self, begun: Any, trusted: bool, named: Callable[[], Any]) -> bool:
        """Send what is missing, and complete it; False where no upload was begun."""
        if begun["upload_id"] is None:
            return False
        upload = f"{self._line.uploads}/{begun['upload_id']}"
        received = {part["number"]: part["size"] for part in begun["parts"]}
        parts: list[tuple[int, int, int]] = []
        for number, start in enumerate(range(0, self._size, begun["part_size"]), 1):
            size = min(begun["part_size"], self._size - start)
            if trusted and received.get(number) == size:
                self._progress(size - self._told.get(number, 0))
                self._told[number] = size
            else:
                parts.append((number, start, size))
        each(lambda part, moved: self._part(upload, part, moved), parts, self._progress)
        # A large one takes longer than an answer may: it is asked for repeatedly.
        self._line.client.post(f"{upload}/complete", named(), idempotent=True)
        return True

    def _part(self, upload: str, part: tuple[int, int, int], progress: Progress) -> None:
        number, start, size = part
        limit = self._line.limit

        def body() -> Iterator[bytes]:
            progress(-self._told.get(number, 0))
            self._told[number] = 0
            for chunk in _read(self._path, start, size, limit.chunk):
                limit.take(len(chunk))
                yield chunk
                self._told[number] += len(chunk)
                progress(len(chunk))

        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with self._line.slots:
            self._line.client.send("PUT", f"{upload}/parts/{number}", content=body, headers=headers)


@contextmanager
def _hashing(path: Path) -> Iterator[Callable[[], tuple[str, int]]]:
    """Hash a file in a thread; yield what waits for its sha256 and size. Leaving ends it."""
    ended = threading.Event()

    def moved(count: int) -> None:
        del count
        if ended.is_set():
            raise InvalidInput(f"{path} is not hashed to its end: sending it has failed.")

    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        future = pool.submit(digest, path, moved)
        try:
            yield future.result
        finally:
            ended.set()


def _read(path: Path, start: int, size: int, piece: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while size > 0:
            chunk = file.read(min(piece, size))
            if not chunk:
                raise InvalidInput(f"{path} became shorter while it was uploaded.")
            size -= len(chunk)
            yield chunk
