"""Publishing what people bring: nothing is published that has not been looked into.

The blobs are uploaded first (scheduler.blobs); here their content is read and judged, outside of
any transaction, and then one short transaction makes the version. What is refused leaves nothing
behind but blobs that garbage collection takes.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import Conflict, InvalidInput
from espalier.messages import FileEntry
from espalier.refs import check_name, parse_artifact
from espalier.states import ArtifactKind
from espalier.vetting import is_config, vet_file, vet_names
from scheduler import access, datasets, registry
from scheduler.access import Actor
from scheduler.blobrows import Digests
from scheduler.blobs import Blobs
from scheduler.db import Database
from scheduler.models import Artifact, Blob, Project, Version
from scheduler.queries.blobs import held_by_person

#: Kinds that people may bring; the others are made by jobs only.
BROUGHT = frozenset({ArtifactKind.DATASET, ArtifactKind.MODEL, ArtifactKind.ADAPTER})
#: What loaders cannot do without: one of each group, by the file's name or its end.
_NEEDED: dict[ArtifactKind, tuple[tuple[str, ...], ...]] = {
    ArtifactKind.MODEL: (
        ("config.json",),
        (".safetensors",),
        ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    ),
    ArtifactKind.ADAPTER: (("adapter_config.json",), ("adapters.safetensors",)),
    ArtifactKind.DATASET: (),
}


@dataclass(frozen=True, slots=True)
class Publication:
    """A version somebody wants to publish; ``parents`` are references it was made from."""

    project: str
    name: str
    kind: ArtifactKind
    files: tuple[FileEntry, ...]
    meta: dict[str, Any]
    parents: tuple[str, ...] = ()


def publish(database: Database, blobs: Blobs, actor: Actor, wanted: Publication) -> str:
    """Judge the files and make a version of them; return its id.

    Raises NotFound for a foreign project or parent, InvalidInput naming file, line and column
    for data that cannot train and file and reason for a model that could run code, Conflict when
    the name belongs to another kind.
    """
    check_name(wanted.name)
    with database.reading() as session:
        project = access.project_for(session, actor, wanted.project)
        _check_kind(session, project, wanted)
        _check_present(session, actor, wanted.files)
        _parents(session, actor, wanted)
    found = _judge(blobs, wanted.kind, wanted.files, wanted.meta)
    meta = {**wanted.meta, **found}

    def compose(session: Session, there: dict[str, Digests]) -> bytes:
        project = access.project_for(session, actor, wanted.project)
        parents = _parents(session, actor, wanted)
        return registry.compose(
            there, project, wanted.name, wanted.kind, wanted.files, meta, parents
        )

    registry.prepare(database, blobs, wanted.files, compose)
    with database.transaction() as session:
        project = access.project_for(session, actor, wanted.project)
        version = registry.publish(
            session,
            blobs,
            project=project,
            name=wanted.name,
            kind=wanted.kind,
            files=wanted.files,
            meta=meta,
            parents=_parents(session, actor, wanted),
            created_by=actor.user_id,
        )
        access.audit(session, actor, "version.publish", registry.label(version))
        return version.id


def _check_kind(session: Session, project: Project, wanted: Publication) -> None:
    """Refuse what would be refused at the end now, before gigabytes are read."""
    if wanted.kind not in BROUGHT:
        raise InvalidInput(
            f"A {wanted.kind.value} is made by a job: it cannot be uploaded.",
            errors=[{"loc": ["kind"], "msg": f"must be {', '.join(sorted(BROUGHT))}"}],
        )
    vet_names(file.path for file in wanted.files)
    names = [file.path for file in wanted.files]
    for group in _NEEDED[wanted.kind]:
        if not any(_matches(name, group) for name in names):
            raise InvalidInput(
                f"This is no {wanted.kind.value}: it has no {' or '.join(group)}.",
                hint="Publish the folder as mlx-lm or transformers saved it.",
                errors=[{"loc": ["files"], "msg": f"needs {' or '.join(group)}"}],
            )
    taken = session.scalar(
        select(Artifact.kind).where(Artifact.project_id == project.id, Artifact.name == wanted.name)
    )
    if taken is not None and taken != wanted.kind:
        raise Conflict(
            f"{project.name}/{wanted.name} is a {taken}: a {wanted.kind.value} needs another name."
        )


def _matches(path: str, group: tuple[str, ...]) -> bool:
    return any(path.endswith(name) if name.startswith(".") else path == name for name in group)


def _check_present(session: Session, actor: Actor, files: Sequence[FileEntry]) -> None:
    """Refuse files that are not there, or that the actor never had.

    The registry checks the first again, in its transaction.
    """
    wanted = {file.sha256 for file in files}
    held = held_by_person(session, actor, wanted)
    sizes: dict[str, int] = {}
    names = sorted(wanted)
    for first in range(0, len(names), 1000):
        rows = session.execute(
            select(Blob.sha256, Blob.size).where(
                Blob.sha256.in_(names[first : first + 1000]), Blob.damaged_at.is_(None)
            )
        )
        sizes.update(rows.all())
    for index, file in enumerate(files):
        if sizes.get(file.sha256) != file.size or file.sha256 not in held:
            raise InvalidInput(
                f"{file.path}: its bytes are not in the store, or are not {file.size}.",
                hint="Upload it first.",
                errors=[{"loc": ["files", index, "sha256"], "msg": "no such blob of this size"}],
            )


def _parents(session: Session, actor: Actor, wanted: Publication) -> list[tuple[str, Version]]:
    found = []
    for text in wanted.parents:
        ref = parse_artifact(text, project=wanted.project)
        access.project_for(session, actor, ref.project)
        version = registry.resolve(session, ref)
        role = "data" if version.artifact.kind == ArtifactKind.DATASET else version.artifact.kind
        found.append((role, version))
    return found


# --- Looking inside -----------------------------------------------------------------------


def _judge(
    blobs: Blobs, kind: ArtifactKind, files: Sequence[FileEntry], meta: dict[str, Any]
) -> dict[str, Any]:
    """Return what was found out, for the version's meta. Raises InvalidInput."""
    if kind == ArtifactKind.DATASET:
        opened = {file.path: partial(reader, blobs, file.sha256) for file in files}
        return {"dataset": datasets.check(opened, meta.get("features")).as_meta()}
    for file in files:
        if is_config(file.path) or file.path.lower().endswith(".safetensors"):
            with reader(blobs, file.sha256) as content:
                vet_file(file.path, content, file.size)
    return {}


class _Chunks(io.RawIOBase):
    """A blob's chunks as a raw stream, fetched as far as somebody reads."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def reader(blobs: Blobs, sha256: str) -> io.BufferedReader:
    """Return a blob as a file that is read forward; what is not read is not fetched."""
    return io.BufferedReader(_Chunks(blobs.open(sha256)))
