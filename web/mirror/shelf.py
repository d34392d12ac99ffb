"""What the mirror keeps on its disk: bytes by ETag, and what the hub said of them.

``blobs/<etag>`` are whole and verified files, ``<etag>.part`` those under way;
``said/<kind>/<org>--<name>/<digest of the question>.json`` are the hub's own answers, so that
what was asked for once can be asked for again while the hub is away. What somebody fetched with a
token of their own is a closed space: answers in ``<org>--<name>@closed``, bytes in
``blobs/<etag>.<digest of the repository>``, shared with no other repository.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.errors import InvalidInput
from espalier.ids import new_id
from espalier.refs import check_name

CLOSED = "@closed"
PART = ".part"
_KEY = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{40})(?:\.[0-9a-f]{16})?")
_REPO = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,95}")


@dataclass(frozen=True, slots=True)
class Space:
    """Where a repository's things lie; a closed one is seen by those who proved their right."""

    kind: str  # models, datasets
    repo: str
    closed: bool = False

    def __post_init__(self) -> None:
        org, _, name = self.repo.partition("/")
        sound = _REPO.fullmatch(org) and _REPO.fullmatch(name) and "--" not in self.repo
        if not sound or self.kind not in ("models", "datasets"):
            raise InvalidInput(f"{self.repo!r:.200} is no repository: it is called org/name.")

    @property
    def folder(self) -> str:
        return f"{self.kind}/{self.repo.replace('/', '--')}{CLOSED if self.closed else ''}"

    def key(self, etag: str) -> str:
        """Return what bytes are called on the disk. Raises InvalidInput: ETags are digests."""
        key = etag
        if self.closed:
            whose = hashlib.sha256(f"{self.kind}/{self.repo}".encode()).hexdigest()
            key = f"{etag}.{whose[:16]}"
        if not _KEY.fullmatch(key):
            raise InvalidInput(
                f"{self.repo}: {etag!r:.100} is no digest, so that what comes under this ETag"
                " could not be verified."
            )
        return key


class Shelf:
    """A directory of this process, and of others on the same machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self._said = root / "said"
        self.blobs.mkdir(parents=True, exist_ok=True)

    def blob(self, key: str) -> Path:
        """Return where the bytes of ``key`` lie or will lie."""
        if not _KEY.fullmatch(key):
            raise InvalidInput(f"{key!r:.100} is the name of no bytes.")
        return self.blobs / key

    def have(self, key: str, size: int) -> int:
        """Return how many of the file's bytes are here, whole or not."""
        path = self.blob(key)
        if path.exists():
            return size
        try:
            return min(path.with_name(key + PART).stat().st_size, max(size - 1, 0))
        except FileNotFoundError:
            return 0

    def recall(self, space: Space, question: str) -> dict[str, Any] | None:
        """Return the answer to a question that was asked before; it counts as used now."""
        path = self._path(space, question)
        try:
            kept: dict[str, Any] = json.loads(path.read_bytes())
            os.utime(path)
        except (OSError, ValueError, RecursionError):
            return None
        return kept

    def remember(self, space: Space, question: str, answer: dict[str, Any]) -> None:
        """Keep an answer, all of it or nothing."""
        path = self._path(space, question)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, answer)

    def spaces(self) -> Iterator[Space]:
        """Yield every repository that something was said of."""
        for kind in ("models", "datasets"):
            for path in sorted((self._said / kind).glob("*--*")):
                name = path.name.removesuffix(CLOSED).replace("--", "/", 1)
                with suppress(InvalidInput):
                    yield Space(kind, name, path.name.endswith(CLOSED))

    def files_of(self, space: Space) -> dict[str, int]:
        """Return the keys of all files that were told of a repository, with their sizes."""
        found: dict[str, int] = {}
        for path in self.folder(space).glob("*.json"):
            with suppress(OSError, ValueError, RecursionError):
                kept = json.loads(path.read_bytes())
                if isinstance(kept.get("size"), int):
                    found[space.key(str(kept.get("etag")))] = kept["size"]
        return found

    def folder(self, space: Space) -> Path:
        return self._said / space.folder

    def grant(self, space: Space, reader: str) -> Path:
        """Return the file that says since when a person (an id) may see a closed space."""
        return self.folder(space) / f"{check_name(reader, 'reader')}.grant"

    def forget(self, space: Space) -> None:
        """Throw out what was said of a repository, and who may see it."""
        shutil.rmtree(self.folder(space), ignore_errors=True)

    def _path(self, space: Space, question: str) -> Path:
        return self.folder(space) / f"{hashlib.sha256(question.encode()).hexdigest()[:40]}.json"


def write_json(path: Path, document: Any) -> None:
    """Write a document, all of it or nothing; many may write the same at once."""
    fresh = path.with_name(f"{path.stem}.{new_id()}.new")
    fresh.write_text(json.dumps(document), encoding="utf-8")
    fresh.replace(path)
