"""Rows of blobs, and the digests that are in them.

A row says: the store has these bytes, and they were read back and had this sha256. Whoever is
about to refer to a blob touches its row, in the transaction that refers to it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from scheduler.db import now
from scheduler.models import Blob


@dataclass(frozen=True, slots=True)
class Digests:
    """Of one object: its sha256, its name as a git blob, its bytes."""

    sha256: str
    git_oid: str
    size: int


class Hashing:
    """The digests of a blob of ``size`` bytes, as its bytes come."""

    def __init__(self, size: int) -> None:
        self._sha256 = hashlib.sha256()
        # Git's header says before the first byte how many there will be.
        self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        self.done = 0

    def update(self, data: bytes) -> None:
        self._sha256.update(data)
        self._git.update(data)
        self.done += len(data)

    def copy(self) -> "Hashing":
        other = Hashing.__new__(Hashing)
        other._sha256, other._git, other.done = self._sha256.copy(), self._git.copy(), self.done
        return other

    def digests(self) -> Digests:
        return Digests(self._sha256.hexdigest(), self._git.hexdigest(), self.done)


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
