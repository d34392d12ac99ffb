"""What a store must be able to do: keep objects under keys, and take large ones in parts.

Four kinds of keys exist: ``blobs/sha256/ab/<sha256>``, written once and never changed;
``staging/<upload id>``, where an upload waits for its verification; ``registry/<project>/<name>``,
what a database can be made anew of (scheduler.catalog.heads); and ``quarantine/<sha256>``, bytes
that are not what their name said (scheduler.upkeep.fsck). Digests, sizes and owners live in SQL; a
driver is trusted with bytes only.
"""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from espalier.errors import EspalierError, InvalidInput

#: Bytes handed on at a time.
CHUNK = 1 << 20
#: S3 takes so many parts an object; a larger upload gets larger parts.
MAX_PARTS = 10_000
#: What a full disk, or a person's full share of it, answers.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
BLOBS, STAGING, REGISTRY, QUARANTINE = "blobs/", "staging/", "registry/", "quarantine/"


class UploadLost(EspalierError):
    """The store no longer knows this upload: it has to begin afresh."""

    status, code, title = 409, "upload_lost", "Upload lost"


class Readable(Protocol):
    """Where bytes come from: a request's body, an open file."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Part:
    """One received part. ``start`` and ``size`` in bytes; ``tag`` is what the driver gave it."""

    number: int
    start: int
    size: int
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the store lists it. ``modified`` is by the store's clock, UTC."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class OpenParts:
    """Parts under way. ``begun`` is by the store's clock, UTC."""

    key: str
    handle: str
    begun: datetime


class Driver(Protocol):
    """A place for objects. Every method raises Unavailable when the place cannot be reached, and

    StorageFull, which is one, when it is full.
    """

    @property
    def place(self) -> str:
        """Where it is, for people: a folder, or endpoint and bucket; never a secret."""

    def probe(self) -> tuple[str, ...]:
        """Write, read, list and delete a small object; raise Unavailable when that fails.

        Returns what the place cannot do and what follows from it, for the log.
        """

    def limits(self) -> tuple[str, ...]:
        """Return what the last `probe` of this driver returned; asks nothing."""

    def link(self, key: str, name: str | None = None) -> str | None:
        """Return a URL where anybody may GET the object for a while, under a file's ``name``.

        None where the place has none, settings do not want it, or its ranges are not to be
        trusted: the bytes then come through `open`.
        """

    def begin(self, key: str) -> str:
        """Return the handle under which parts of ``key`` are put; two calls, two handles."""

    def put_part(self, key: str, handle: str, part: Part, source: Readable) -> str:
        """Store exactly ``part.size`` bytes of ``source``, durably; return the part's tag.

        The same part may be put again, also at the same time; the last one counts, and where the
        place cannot replace a part by another one, the upload is lost. Raises InvalidInput when
        ``source`` is shorter or longer, UploadLost.
        """

    def assemble(self, key: str, handle: str, parts: Sequence[Part]) -> None:
        """Make one object of all the parts, in order. Raises UploadLost; done twice is done."""

    def abort(self, key: str, handle: str) -> None:
        """Remove the parts put under ``handle``; what is not there is no error."""

    def uploads(self) -> Iterator[OpenParts]:
        """Yield what was begun and neither assembled nor aborted, if `list` does not show it."""

    def move(self, source: str, target: str) -> None:
        """Make ``source`` appear, whole, as ``target``. Raises NotFound."""

    def put(self, key: str, data: bytes) -> None:
        """Store a small object, whole or not at all."""

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Return the bytes from ``start``, ``length`` of them or all that follow.

        Raises NotFound at once; a cut on the way raises Unavailable while iterating.
        """

    def size(self, key: str) -> int | None:
        """Return the object's bytes, None when there is none."""

    def delete(self, key: str) -> None:
        """Remove the object; what is not there is no error."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield every object whose key begins with ``prefix``, which ends a folder; no order."""

    def room(self) -> int | None:
        """Return how many bytes still fit, None where nobody can say."""


def blob_key(sha256: str) -> str:
    """Return where the blob lies. Two levels, as no folder should hold a million files."""
    return f"{BLOBS}sha256/{sha256[:2]}/{sha256}"


def staging_key(upload_id: str) -> str:
    return f"{STAGING}{upload_id}"


def chunks(source: Readable, size: int) -> Iterator[bytes]:
    """Yield exactly ``size`` bytes of ``source``; raise InvalidInput when it holds more or less."""
    left = size
    while left:
        chunk = source.read(min(CHUNK, left))
        if not chunk:
            raise InvalidInput(
                f"The part ended after {size - left} bytes; it must have {size}.",
                hint="Send the part again.",
            )
        left -= len(chunk)
        yield chunk
    if source.read(1):
        raise InvalidInput(f"The part is longer than the {size} bytes it must have.")
