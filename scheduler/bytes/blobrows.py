"""Rows of blobs, and the digests that are in them.

A row says: the store has these bytes, and they were read back and had this sha256. Whoever is
about to refer to a blob touches its row, in the transaction that refers to it.

Of a large file git has a pointer, a few lines with its sha256, and that pointer's name is the
file's: no second digest is made of bytes that come by the gigabyte. Rows of before have the name
that git would give the bytes themselves; nobody is told either.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from scheduler.db import now
from scheduler.models import Blob

#: Files above are large to git: known by their sha256, and kept behind a pointer.
LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class Digests:
    """Of one object: its sha256, its name as a git blob (a large one's pointer's), its bytes."""

    sha256: str
    git_oid: str
    size: int


class Hashing:
    """The digests of a blob of ``size`` bytes, as its bytes come."""

    def __init__(self, size: int) -> None:
        self._sha256 = hashlib.sha256()
        self._git = None if size > LARGE else _git(size)
        self.done = 0

    def update(self, data: bytes) -> None:
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)
        self.done += len(data)

    def copy(self) -> "Hashing":
        other = Hashing.__new__(Hashing)
        other._sha256, other.done = self._sha256.copy(), self.done
        other._git = None if self._git is None else self._git.copy()
        return other

    def digests(self) -> Digests:
        sha256 = self._sha256.hexdigest()
        git = pointer_oid(sha256, self.done) if self._git is None else self._git.hexdigest()
        return Digests(sha256, git, self.done)


def _git(size: int) -> "hashlib._Hash":
    # Git's header says before the first byte how many there will be.
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def pointer(sha256: str, size: int) -> bytes:
    """Return what git keeps in a large file's place (git-lfs, docs/spec.md)."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return text.encode("ascii")


def pointer_oid(sha256: str, size: int) -> str:
    """Return git's name of a large file's pointer."""
    text = pointer(sha256, size)
    found = _git(len(text))
    found.update(text)
    return found.hexdigest()


def digests(data: Iterable[bytes], size: int) -> Digests:
    """Hash ``data`` in one pass; ``size`` is what git's header says it will be."""
    hashing = Hashing(size)
    for chunk in data:
        hashing.update(chunk)
    return hashing.digests()


def touch(session: Session, names: Iterable[str]) -> dict[str, Digests]:
    """Renew those of the blobs that exist, and return them by sha256; the caller commits.

    Whoever is about to refer to a blob does so first: from here to the commit garbage collection
    cannot take it, and after that not for its grace.
    """
    found: dict[str, Digests] = {}
    ordered = sorted(set(names))  # one order for all: no two callers wait for each other
    for first in range(0, len(ordered), 1000):
        rows = session.execute(
            update(Blob)
            .where(Blob.sha256.in_(ordered[first : first + 1000]), Blob.damaged_at.is_(None))
            .values(touched_at=now(session))
            .returning(Blob.sha256, Blob.git_oid, Blob.size)
            .execution_options(synchronize_session=False)
        )
        found |= {row.sha256: Digests(row.sha256, row.git_oid, row.size) for row in rows}
    return found


def mark_damaged(session: Session, names: Sequence[str]) -> None:
    """Note that the store has lost these blobs' bytes."""
    session.execute(
        update(Blob)
        .where(Blob.sha256.in_(names), Blob.damaged_at.is_(None))
        .values(damaged_at=now(session))
        .execution_options(synchronize_session=False)
    )


def insert(session: Session, found: Digests) -> None:
    """Make the row of bytes that are in the store now, or renew it."""
    moment = now(session)
    row = Blob(**asdict(found), created_at=moment, touched_at=moment)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # somebody else stored the same bytes
        session.execute(
            update(Blob)
            .where(Blob.sha256 == found.sha256)
            .values(touched_at=now(session), damaged_at=None)
        )
