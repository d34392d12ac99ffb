"""Blobs on this machine, by sha256: what one job has fetched, the next one finds.

Verified when they arrive and trusted afterwards; hashing a 16 GB model again for each job would
cost more than starting it. What is trusted is read-only: a blob becomes so when it was hashed and
is on the disk itself, and gets its name after that (espalier.transfer). A file that can be written
into, left by a crash, a restored copy or a person, is hashed before it counts.

An attempt sees its inputs as hard links, so that a blob that is thrown out while it is in use
stays whole for whom it serves, also across processes.
"""

import errno
import logging
import os
import shutil
import stat as modes
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from espalier.errors import EspalierError
from espalier.messages import MAX_HOLDINGS, FileEntry
from espalier.refs import check_path
from espalier.sending import digest
from espalier.settings import Settings
from espalier.together import Progress, each
from espalier.transfer import Transfer, blob_path
from worker.siblings import Siblings

log = logging.getLogger("worker")

#: Checkpoints have to fit on the disk too.
DISK_RESERVE: int = Settings.model_fields["disk_reserve_bytes"].default
#: Seconds after which an unfinished download counts as given up.
_PART_AGE = 86_400


#: The permissions of a trusted blob. A link shares the bytes: no job may write into them.
TRUSTED = 0o444


class NoRoom(EspalierError):
    """The inputs do not fit into the cache's budget or onto the disk."""


class BlobCache:
    """A directory of blobs within a budget of bytes; the least recently used go first."""

    def __init__(
        self, root: Path, budget: int, transfer: Transfer, reserve: int = DISK_RESERVE
    ) -> None:
        """``reserve``: bytes left free on the disk whatever the budget says."""
        self._root = root
        self._budget = budget
        self._reserve = reserve
        self._transfer = transfer
        root.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return blob_path(self._root, sha256)

    def has(self, entry: FileEntry) -> bool:
        """Say whether the blob is here, whole, and note that it is wanted."""
        path = self.path(entry.sha256)
        try:
            found = path.stat()
            if found.st_size != entry.size or not (_is_trusted(found) or _earns_trust(path)):
                log.warning("cache: %s is not what it should be; it goes", path.name)
                path.unlink()
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def holdings(self) -> dict[str, int]:
        """Return the trusted blobs, sha256 → bytes; of too many the largest."""
        found = {p.name: s.st_size for p, s in _by_age(self._root) if _is_trusted(s)}
        whole = {name: size for name, size in found.items() if not name.startswith(".")}
        largest = sorted(whole.items(), key=lambda item: (-item[1], item[0]))
        return dict(largest[:MAX_HOLDINGS])

    def stamp(self) -> tuple[int, ...]:
        """Return what changes when a blob comes or goes, whichever process brought it."""
        return tuple(sorted(path.stat().st_mtime_ns for path in self._root.iterdir()))

    def open(self, sha256: str) -> BinaryIO | None:
        """Open a trusted blob to read; None when it is not here."""
        try:
            file = self.path(sha256).open("rb", buffering=0)
        except FileNotFoundError:
            return None
        if _is_trusted(os.fstat(file.fileno())):
            return file
        file.close()
        return None

    def lay_out(
        self,
        entries: Iterable[FileEntry],
        directory: Path,
        progress: Progress,
        siblings: Siblings | None = None,
    ) -> None:
        """Make ``directory`` hold the entries at their paths, fetching what is not here.

        From ``siblings``, as far as they have it, else from the control plane.
        Raises NoRoom, NotFound when the store has lost a blob, Unavailable, and what
        ``progress`` raises.
        """
        entries = tuple(entries)
        self.make_room(entries)
        targets = [(entry, directory / check_path(entry.path)) for entry in entries]
        for _, target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(parents=True, exist_ok=True)
        each(lambda item, moved: self._place(item[0], item[1], moved, siblings), targets, progress)

    def _place(
        self, entry: FileEntry, target: Path, progress: Progress, siblings: Siblings | None
    ) -> None:
        path = self.path(entry.sha256)
        while True:
            if self.has(entry):
                progress(entry.size)
            elif not (siblings and siblings.fetch(entry, path, progress)):
                self._transfer.pull_file(entry, path, progress)
            try:
                _link(path, target)
            except FileNotFoundError:  # thrown out by another worker in this very moment
                continue
            return

    def make_room(self, entries: Iterable[FileEntry]) -> None:
        """Throw out the least recently used blobs until what is missing fits."""
        entries = tuple(entries)
        wanted = {entry.sha256: entry for entry in entries}
        whole = sum(entry.size for entry in wanted.values())
        if whole > self._budget:
            raise NoRoom(
                f"The inputs have {whole:,} bytes, the cache's budget is {self._budget:,}.",
                hint="Raise ESPALIER_CACHE_BYTES on this worker.",
            )
        missing = sum(entry.size for entry in wanted.values() if not self.has(entry))
        if not missing:
            return
        kept = _by_age(self._root)
        used = sum(stat.st_size for _, stat in kept)
        free = shutil.disk_usage(self._root).free - self._reserve
        for path, stat in kept:
            if used + missing <= self._budget and missing <= free:
                break
            if path.name not in wanted and stat.st_nlink == 1:
                path.unlink(missing_ok=True)
                used -= stat.st_size
                free += stat.st_size
                log.info("cache: threw out %s (%d bytes)", path.name, stat.st_size)
        if missing > free:
            raise NoRoom(
                f"The inputs need {missing:,} more bytes; the worker's disk has"
                f" {free + self._reserve:,} left, of which {self._reserve:,} stay free for"
                " checkpoints and outputs.",
                hint=f"Free space on the volume of {self._root}, or lower"
                " ESPALIER_DISK_RESERVE_BYTES on this worker.",
            )


def _is_trusted(found: os.stat_result) -> bool:
    return modes.S_IMODE(found.st_mode) & 0o222 == 0


def _earns_trust(path: Path) -> bool:
    """Hash a blob that nothing vouches for; say whether it is what its name says."""
    log.info("cache: nothing vouches for %s: hashing it", path.name)
    if digest(path)[0] != path.name:
        return False
    path.chmod(TRUSTED)
    return True


def _by_age(root: Path) -> list[tuple[Path, os.stat_result]]:
    """Return every blob that could go with its facts, the least recently used first."""
    found = []
    for path in root.glob("??/*"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        if not path.name.startswith(".") or time.time() - stat.st_mtime > _PART_AGE:
            found.append((path, stat))
    return sorted(found, key=lambda item: item[1].st_mtime_ns)


def _link(path: Path, target: Path) -> None:
    """Hard-link, or copy where the disks differ or the file system has no links."""
    try:
        target.hardlink_to(path)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(path, target)
