"""Publishing what people bring: nothing is published that has not been looked into.

The blobs are uploaded first (scheduler.bytes.blobs); here their content is read and judged, outside
of any transaction, and then one short transaction makes the version. What is refused leaves nothing
behind but blobs that garbage collection takes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import Conflict, InvalidInput
from espalier.messages import FileEntry
from espalier.refs import check_name, parse_artifact
from espalier.states import ArtifactKind
from espalier.vetting import vet_names
from scheduler import access
from scheduler.access import Actor
from scheduler.bytes.blobrows import Digests
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import quota, registry
from scheduler.contents.judging import advice, judge, lacking
from scheduler.db import Database
from scheduler.models import Artifact, Blob, Project, Version
from scheduler.queries.blobs import held_by_person

#: Kinds that people may bring; the others are made by jobs only.
BROUGHT = frozenset(
    {ArtifactKind.DATASET, ArtifactKind.MODEL, ArtifactKind.ADAPTER, ArtifactKind.GGUF}
)


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
        check_present(session, actor, wanted.files)
        _parents(session, actor, wanted)
    found = judge(blobs, wanted.kind, wanted.files, wanted.meta)
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
        quota.check(session, project, {file.sha256: file.size for file in wanted.files})
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
    group = lacking(wanted.kind, names) if wanted.kind != ArtifactKind.DATASET else ()
    if group:
        raise InvalidInput(
            f"This is no {wanted.kind.value}: it has no {' or '.join(group)}.",
            hint=advice(names) or "Publish the folder as mlx-lm or transformers saved it.",
            errors=[{"loc": ["files"], "msg": f"needs {' or '.join(group)}"}],
        )
    taken = session.scalar(
        select(Artifact).where(
            Artifact.project_id == project.id,
            Artifact.name == wanted.name,
            Artifact.deleted_at.is_(None),
        )
    )
    if taken is not None and not registry.may_be(session, taken, wanted.kind):
        raise Conflict(
            f"{project.name}/{wanted.name} is a {taken.kind}: a {wanted.kind.value} needs another"
            " name."
        )


def check_present(
    session: Session,
    actor: Actor,
    files: Sequence[FileEntry],
    sent: Collection[str] = (),
) -> None:
    """Refuse files that are not there, or that the actor never had; ``sent`` were just now.

    The registry checks the first again, in its transaction.
    """
    wanted = {file.sha256 for file in files}
    held = held_by_person(session, actor, wanted.difference(sent)).union(sent)
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
