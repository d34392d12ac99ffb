"""What the mirror throws out: the longest unused, by size and by age, and never what is needed."""

import fcntl
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from espalier.errors import StorageFull
from web.mirror.shelf import PART, Shelf, Space

_DAY = 86_400.0
#: Repositories, as (kind, repo).
Repos = Collection[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep threw out: files, and their bytes."""

    files: int
    bytes: int


class Room:
    """The budget of a shelf, in bytes and days. ``needed`` says what must stay."""

    def __init__(
        self, shelf: Shelf, budget: int, days: int | None, needed: Callable[[], Repos]
    ) -> None:
        self._shelf = shelf
        self.budget = budget
        self._days = days
        self.needed = needed

    def make(self, key: str, size: int, coming: int) -> None:
        """Throw out files, the longest unused first, until the ``size`` bytes of ``key`` fit.

        ``coming`` bytes are on their way for others. Raises StorageFull when what is needed by
        jobs and aliases leaves no room, or the disk has none.
        """
        files = self._by_age()
        size -= self._shelf.have(key, size)  # what an earlier try has left of it
        held = sum(facts.st_size for facts, _ in files) + coming
        free = os.statvfs(self._shelf.blobs)
        short = max(held + size - self.budget, size + coming - free.f_bavail * free.f_frsize)
        if short <= 0:
            return
        kept = {key, *self._kept()}
        for facts, path in files:
            if short <= 0:
                return
            if path.name.removesuffix(PART) not in kept and _thrown_out(path):
                short -= facts.st_size
        if short > 0:
            raise StorageFull(
                f"The mirror of the public hub may hold {self.budget:,} bytes, and {size:,} more"
                f" do not fit: {short:,} too many are needed by jobs and aliases, or are not free"
                " on the disk.",
                hint="Raise ESPALIER_MIRROR_BYTES, make room on the disk, or wait for the jobs"
                " that use it.",
            )

    def sweep(self) -> Swept:
        """Throw out what nobody used for the days that are set, if they are."""
        files, size = 0, 0
        if self._days is None:
            return Swept(0, 0)
        limit = time.time() - self._days * _DAY
        kept = self._kept()
        for facts, path in self._by_age():
            if facts.st_mtime >= limit:
                break
            if path.name.removesuffix(PART) not in kept and _thrown_out(path):
                files, size = files + 1, size + facts.st_size
        needed = set(self.needed())
        for space in list(self._shelf.spaces()):
            if (space.kind, space.repo) not in needed and self._last_said(space) < limit:
                self._shelf.forget(space)
        return Swept(files, size)

    def empty(self, space: Space) -> Swept:
        """Throw out a repository's answers, and the files that no other repository was told of."""
        mine = set(self._shelf.files_of(space))
        self._shelf.forget(space)
        others = {key for other in self._shelf.spaces() for key in self._shelf.files_of(other)}
        files, size = 0, 0
        for facts, path in self._by_age():
            if path.name.removesuffix(PART) in mine - others and _thrown_out(path):
                files, size = files + 1, size + facts.st_size
        return Swept(files, size)

    def held(self) -> int:
        """Return the bytes on the disk, those of unfinished files too."""
        return sum(facts.st_size for facts, _ in self._by_age())

    def _by_age(self) -> list[tuple[os.stat_result, Path]]:
        found = []
        for path in self._shelf.blobs.iterdir():
            with suppress(FileNotFoundError):
                found.append((path.stat(), path))
        return sorted(found, key=lambda item: item[0].st_mtime)

    def _kept(self) -> frozenset[str]:
        """Return the keys of every file that was told of a needed repository."""
        found: set[str] = set()
        for kind, repo in self.needed():
            for closed in (False, True):
                found.update(self._shelf.files_of(Space(kind, repo, closed)))
        return frozenset(found)

    def _last_said(self, space: Space) -> float:
        moments = [0.0]
        for path in self._shelf.folder(space).glob("*.json"):
            with suppress(FileNotFoundError):
                moments.append(path.stat().st_mtime)
        return max(moments)


def _thrown_out(path: Path) -> bool:
    """Remove a file, but no part that somebody fetches; say whether it is gone."""
    try:
        with path.open("rb") as file:
            if path.name.endswith(PART):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
