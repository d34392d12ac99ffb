"""What is to be fetched ahead, as it is kept: one JSON file each, below ``prefetch/``."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from espalier.patterns import DATA_FILES, MODEL_FILES
from web.mirror.room import Repos
from web.mirror.shelf import write_json

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What to fetch: files whose paths or names match one of ``include`` (empty: the usual)."""

    kind: str
    repo: str
    revision: str = "main"
    include: tuple[str, ...] = ()

    def wants(self, path: str) -> bool:
        usual = DATA_FILES if self.kind == "datasets" else MODEL_FILES
        name = path.rpartition("/")[2]
        patterns = self.include or usual
        return any(fnmatchcase(path, p) or fnmatchcase(name, p) for p in patterns)


@dataclass(frozen=True, slots=True)
class Prefetch:
    """One of them as it is kept. ``files`` are (path, key, bytes); ``by`` is a user's id.

    ``own`` says that it was begun with that person's token; ``closed`` that it needed it.
    """

    id: str
    wish: Wish
    by: str
    own: bool = False
    state: State = "waiting"
    closed: bool = False
    commit: str | None = None
    files: tuple[tuple[str, str, int], ...] = ()
    error: str | None = None
    hint: str | None = None
    asked_at: float = 0.0
    ended_at: float | None = None
    have: int = field(default=0, compare=False)  # bytes that are here, as it is told

    @property
    def size(self) -> int:
        return sum(size for _, _, size in self.files)

    def is_seen(self, reader: str | None) -> bool:
        """Whether a person may know of it: what needs somebody's own token is theirs alone."""
        return not self.own or self.by == reader

    @property
    def is_open(self) -> bool:
        return self.state in ("waiting", "running")


class Records:
    """A folder of them, shared by the processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def name(self, wish: Wish, whose: str) -> str:
        """Return the id of a wish: the same for all who ask without a token of their own."""
        name = json.dumps([wish.kind, wish.repo, wish.revision, sorted(wish.include), whose])
        return hashlib.sha256(name.encode()).hexdigest()[:16]

    def active(self) -> Repos:
        """Return the repositories that are being fetched: none is thrown out meanwhile."""
        return {(one.wish.kind, one.wish.repo) for one in self.all() if one.is_open}

    def all(self) -> Iterator[Prefetch]:
        for path in sorted(self._folder.glob("*.json")):
            found = self.read(path.stem)
            if found:
                yield found

    def read(self, id_: str) -> Prefetch | None:
        if not (id_.isascii() and id_.isalnum()):
            return None
        try:
            kept = json.loads((self._folder / f"{id_}.json").read_bytes())
            wish = {**kept["wish"], "include": tuple(kept["wish"]["include"])}
            files = tuple((p, k, s) for p, k, s in kept["files"])
            return Prefetch(**{**kept, "wish": Wish(**wish), "files": files})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, one: Prefetch) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / f"{one.id}.json", asdict(one))

    def forget(self, ended_before: float) -> None:
        """Throw out those that ended before a moment."""
        for one in list(self.all()):
            if one.ended_at and one.ended_at < ended_before:
                for path in self._folder.glob(f"{one.id}.*"):
                    path.unlink(missing_ok=True)

    @contextmanager
    def attending(self, id_: str) -> Iterator[bool]:
        """Hold one for this process; gives False when another one has it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{id_}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
