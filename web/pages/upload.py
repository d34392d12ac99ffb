"""Data files from a form: one is split into three, all are judged, then stored and published."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice, pairwise
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from werkzeug.datastructures import FileStorage
from werkzeug.wsgi import LimitedStream

from espalier import splits
from espalier.errors import EspalierError, InvalidInput
from espalier.messages import FileEntry
from espalier.refs import parse_artifact
from espalier.states import ArtifactKind
from scheduler.access import Actor
from scheduler.bytes.blobs import Blobs
from scheduler.catalog.publishing import Publication, publish
from scheduler.contents import datasets
from scheduler.db import Database

#: Bytes a form takes; the CLI takes larger sets, and resumes them.
MOST = 512 << 20
#: Characters of a broken line that are shown around the fault.
_AROUND = 60


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that was refused: where it is, what is wrong, and how it reads there."""

    file: str
    line: int
    column: int
    message: str
    before: str = ""
    after: str = ""


@dataclass
class DataFiles:
    """The files of one upload, in a folder, by the name they have in the data set.

    ``single`` is the name of a file that came alone and is to be split.
    """

    paths: dict[str, Path]
    single: str | None = None

    @classmethod
    def of(cls, uploaded: Sequence[FileStorage], folder: Path) -> "DataFiles":
        """Save a form's files in ``folder``. Raises InvalidInput: none, or two of one name."""
        given = [(PurePath(file.filename).name, file) for file in uploaded if file.filename]
        if not given:
            raise _missing("file", "Choose one or several .jsonl files.")
        names = ["train.jsonl"] if len(given) == 1 else [name for name, _ in given]
        if len(set(names)) < len(names):
            raise _missing("file", "Two of the files have the same name.")
        paths = {name: folder / str(index) for index, name in enumerate(names)}
        for path, (_, file) in zip(paths.values(), given, strict=True):
            file.save(path)
        return cls(paths, given[0][0] if len(given) == 1 else None)

    def check(self) -> None:
        """Read every line. Raises InvalidInput with file, line and column of each fault."""
        datasets.check({name: partial(_opened, path) for name, path in self.paths.items()})

    def split(self, seed: int = 0) -> None:
        """Deal the rows of a single file out to train, valid and test."""
        if self.single is None:
            return
        source = self.paths["train.jsonl"]
        with source.open("rb") as lines:
            ends = list(accumulate((len(line) for line in lines), initial=0))
            dealt = splits.split(list(pairwise(ends)), seed)
            for name, rows in dealt.items():
                path = source.with_name(name)
                with path.open("wb") as file:
                    for start, end in rows:
                        lines.seek(start)
                        file.write(lines.read(end - start).rstrip(b"\n") + b"\n")
                self.paths[f"{name}.jsonl"] = path

    def broken(self, error: EspalierError) -> list[Broken]:
        """Return the lines that an error is about, as they read around the fault."""
        found = []
        for fault in error.errors:
            match fault["loc"]:
                case [str(file), int(line), int(column)]:
                    text = self._line(file, line)
                    at = max(0, column - 1)
                    around = text[max(0, at - _AROUND) : at], text[at : at + _AROUND]
                    found.append(Broken(self.single or file, line, column, fault["msg"], *around))
        return found

    def _line(self, file: str, number: int) -> str:
        if number < 1 or file not in self.paths:
            return ""
        with self.paths[file].open("rb") as lines:
            line = next(islice(lines, number - 1, None), b"")
        return line.decode("utf-8", "replace").rstrip("\r\n")


def publish_files(
    database: Database, blobs: Blobs, actor: Actor, name: str, files: DataFiles
) -> str:
    """Store the files and publish them as the next version of ``name``; return the version's id.

    Raises what parse_artifact and publish raise.
    """
    if not name:
        raise _missing("name", "Give the data set a name.")
    ref = parse_artifact(name, project="team")
    owner = f"user:{actor.user_id}"
    entries = tuple(
        _stored(database, blobs, owner, name, path) for name, path in sorted(files.paths.items())
    )
    meta: dict[str, Any] = {"split_from": files.single} if files.single else {}
    wanted = Publication(ref.project, ref.name, ArtifactKind.DATASET, entries, meta)
    return publish(database, blobs, actor, wanted)


def _stored(database: Database, blobs: Blobs, owner: str, name: str, path: Path) -> FileEntry:
    """Upload a file as any client would, from this process."""
    size = path.stat().st_size
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with database.transaction() as db:
            upload = blobs.open_upload(db, owner, sha256, size, reuse=False)
        if upload.upload_id is not None:
            file.seek(0)
            for number, start in enumerate(range(0, size, upload.part_size), 1):
                part = LimitedStream(file, min(upload.part_size, size - start))
                blobs.put_part(database, upload.upload_id, owner, number, part)
            blobs.complete(database, upload.upload_id, owner)
    return FileEntry(path=name, sha256=sha256, size=size)


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def _missing(field: str, text: str) -> InvalidInput:
    return InvalidInput(text, errors=[{"loc": [field], "msg": text}])
