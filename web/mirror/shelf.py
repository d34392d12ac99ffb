"""What the mirror keeps on its disk: bytes by ETag, and what the hub said of them.

``blobs/<etag>`` are whole and verified files, ``<etag>.part`` those under way;
``said/<kind>/<org>--<name>/<digest of the question>.json`` are the hub's own answers, so that
what was asked for once can be asked for again while the hub is away.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from espalier.errors import InvalidInput, StorageFull
from espalier.ids import new_id

_ETAG = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}")
_REPO = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,95}")


class Shelf:
    """A directory. ``needed`` returns the (kind, repo) that jobs are waiting for."""

    def __init__(
        self, root: Path, budget: int, needed: Callable[[], Collection[tuple[str, str]]]
    ) -> None:
        self._blobs = root / "blobs"
        self._said = root / "said"
        self._budget = budget
        self._needed = needed
        self._blobs.mkdir(parents=True, exist_ok=True)

    def blob(self, etag: str) -> Path:
        """Return where the bytes of ``etag`` lie or will lie. Raises InvalidInput."""
        if not _ETAG.fullmatch(etag):
            raise InvalidInput(f"{etag!r:.200} is no ETag that a file could be called by.")
        return self._blobs / etag

    def has(self, etag: str) -> bool:
        """Say whether the whole file is here; asking keeps it from being thrown out next."""
        path = self.blob(etag)
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def recall(self, kind: str, repo: str, question: str) -> dict[str, Any] | None:
        """Return the answer to a question that was asked before."""
        try:
            kept: dict[str, Any] = json.loads(self._path(kind, repo, question).read_bytes())
        except (OSError, ValueError):
            return None
        return kept

    def remember(self, kind: str, repo: str, question: str, answer: dict[str, Any]) -> None:
        path = self._path(kind, repo, question)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{new_id()}.new")  # many may ask the same at once
        fresh.write_text(json.dumps(answer), encoding="utf-8")
        fresh.replace(path)

    def make_room(self, size: int) -> None:
        """Throw out files, the longest unused first, until ``size`` bytes fit the budget.

        What a waiting or running job needs is kept. Raises StorageFull when that is not enough.
        """
        files = sorted(
            ((p.stat(), p) for p in self._blobs.iterdir() if p.suffix != ".part"),
            key=lambda item: item[0].st_mtime,
        )
        held = sum(status.st_size for status, _ in files)
        kept = self._kept() if held + size > self._budget else frozenset()
        for status, path in files:
            if held + size <= self._budget:
                return
            if path.name not in kept:
                path.unlink(missing_ok=True)
                held -= status.st_size
        if held + size > self._budget:
            raise StorageFull(
                f"The mirror of the public hub may hold {self._budget:,} bytes; {held:,} are"
                f" needed by jobs, and {size:,} more do not fit.",
                hint="Raise ESPALIER_MIRROR_BYTES, or wait for the jobs that use it.",
            )

    def _kept(self) -> frozenset[str]:
        """Return the ETags of every file that was told of a needed repository."""
        found: set[str] = set()
        for kind, repo in self._needed():
            for path in self._folder(kind, repo).glob("*.json"):
                etag = json.loads(path.read_bytes()).get("etag")
                if etag:
                    found.add(etag)
        return frozenset(found)

    def _folder(self, kind: str, repo: str) -> Path:
        org, _, name = repo.partition("/")
        if not (_REPO.fullmatch(org) and _REPO.fullmatch(name)):
            raise InvalidInput(f"{repo!r:.200} is no repository: it is called org/name.")
        return self._said / kind / f"{org}--{name}"

    def _path(self, kind: str, repo: str, question: str) -> Path:
        digest = hashlib.sha256(question.encode()).hexdigest()[:40]
        return self._folder(kind, repo) / f"{digest}.json"
