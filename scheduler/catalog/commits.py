"""Commits to a branch: what the hub's clients write, made a version.

The files are those of the branch's head, less what is deleted, and with what is new. All that takes
time (reading the new files, asking the store for the others) is done without a lock; one short
transaction then looks whether the head is still the one that was read, and makes the version.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import EspalierError, InvalidInput, NotFound, Unavailable
from espalier.messages import FileEntry
from espalier.states import ArtifactKind
from espalier.vetting import vet_names
from scheduler import access
from scheduler.access import Actor
from scheduler.bytes.blobrows import Digests
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import branches, manifests, quota, registry
from scheduler.catalog.manifests import History
from scheduler.catalog.publishing import check_present
from scheduler.catalog.registry import INCOMPLETE, MAIN, Parent
from scheduler.contents import judging
from scheduler.db import Database
from scheduler.models import Artifact, Lineage, Project, Version, VersionFile

#: Times that a commit without a parent begins again because others were quicker.
_TRIES = 10
#: Characters of a commit's title and of its text.
MAX_TITLE, MAX_TEXT = 500, 65_536
#: Files of one version.
MAX_FILES = 100_000


class StaleParent(EspalierError):
    """The branch has moved on since the commit's author looked."""

    status, code, title = 412, "stale_parent", "A commit has happened since"


class NoSuchFile(NotFound):
    """What a commit deletes is not in the branch. ``commit`` is the head's."""

    code, title = "entry_not_found", "No such file"

    def __init__(self, detail: str, commit: str) -> None:
        super().__init__(detail)
        self.commit = commit


@dataclass(frozen=True, slots=True)
class Commit:
    """What somebody wants to commit to ``branch`` of ``project/name``.

    ``parent_commit`` (its first digits will do) is the head they saw. ``sent`` are the sha256 of
    additions whose bytes came with the commit itself; the others were uploaded before.
    """

    project: str
    name: str
    title: str
    branch: str = MAIN
    description: str = ""
    parent_commit: str | None = None
    additions: Mapping[str, FileEntry] = field(default_factory=dict)
    deleted_files: tuple[str, ...] = ()
    deleted_folders: tuple[str, ...] = ()
    sent: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Head:
    """The branch as it was read; ``version_id`` is None before its first commit."""

    artifact_id: str
    kind: ArtifactKind
    fixed: bool  # something whole is in it: it stays what it is
    version_id: str | None
    commit: str | None
    meta: dict[str, Any]
    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True)
class _Draft:
    """The version that the commit would make of a head."""

    kind: ArtifactKind
    files: list[FileEntry]
    meta: dict[str, Any]
    history: History
    keeps: bool  # weights or data are the head's: what made them has made these


def check(database: Database, actor: Actor, wanted: Commit) -> None:
    """Refuse now what would be refused in any case, before bytes are stored for it."""
    vet_names(wanted.additions)
    _message(wanted)
    with database.reading() as session:
        head = _read(session, actor, wanted)
        _files(head, wanted)
        uploaded = [f for f in wanted.additions.values() if f.sha256 not in wanted.sent]
        check_present(session, actor, uploaded)


def commit(database: Database, blobs: Blobs, actor: Actor, wanted: Commit) -> str:
    """Make a version of the branch's head and the changes; return its id.

    A commit that changes nothing is the head. Raises StaleParent when ``parent_commit`` is not
    the head, NotFound for a foreign repository or an unknown branch, NoSuchFile, InvalidInput for
    what may not be stored (named by file and, in data, by line), QuotaExceeded.
    """
    check(database, actor, wanted)
    for _ in range(_TRIES):
        with database.reading() as session:
            head = _read(session, actor, wanted)
            check_present(session, actor, list(wanted.additions.values()), wanted.sent)
        files = _files(head, wanted)
        if files == head.files and head.version_id:
            return head.version_id
        draft = _draft(blobs, wanted, head, files)
        registry.prepare(database, blobs, draft.files, partial(_compose, head, draft))
        made = _make(database, blobs, actor, wanted, head, draft)
        if made is not None:
            return made
    raise Unavailable(f"Others commit to {wanted.branch} all the time; try again.")


# --- What there is ------------------------------------------------------------------------


def _read(session: Session, actor: Actor, wanted: Commit) -> _Head:
    artifact = _artifact(session, actor, wanted)
    branches.check_writable(session, artifact, wanted.branch)
    version = registry.head(session, artifact, wanted.branch)
    _check_parent(wanted, version)
    kind = ArtifactKind(artifact.kind)
    rows = session.execute(
        select(VersionFile.path, VersionFile.sha256, VersionFile.size).where(
            VersionFile.version_id == (version.id if version else None)
        )
    )
    return _Head(
        artifact_id=artifact.id,
        kind=kind,
        fixed=kind != ArtifactKind.MODEL or registry.has_whole(session, artifact),
        version_id=version.id if version else None,
        commit=version.commit if version else None,
        meta=version.meta if version else {},
        files={path: FileEntry(path=path, sha256=sha, size=size) for path, sha, size in rows},
    )


def _artifact(session: Session, actor: Actor, wanted: Commit) -> Artifact:
    access.project_for(session, actor, wanted.project)
    artifact = registry.find_artifact(session, wanted.project, wanted.name)
    if artifact.project.name != wanted.project:  # it was moved to another project
        access.project_for(session, actor, artifact.project.name)
    return artifact


def _check_parent(wanted: Commit, head: Version | None) -> None:
    parent = wanted.parent_commit
    if parent and (head is None or len(parent) < 7 or not head.commit.startswith(parent)):
        raise StaleParent(
            f"{wanted.branch} is at commit {head.commit if head else 'none'}, not at {parent}:"
            " a commit has happened since.",
            hint="Look at what changed, and commit again upon that.",
        )


# --- What there would be ------------------------------------------------------------------


def _files(head: _Head, wanted: Commit) -> dict[str, FileEntry]:
    files = dict(head.files)
    for path in wanted.deleted_files:
        if files.pop(path, None) is None and path not in wanted.additions:
            raise NoSuchFile(f"{wanted.branch} has no file {path!r} to delete.", head.commit or "")
    for folder in wanted.deleted_folders:
        prefix = folder.strip("/") + "/"
        inside = [path for path in files if path.startswith(prefix)]
        if not inside:
            raise NoSuchFile(f"{wanted.branch} has no folder {folder!r}.", head.commit or "")
        for path in inside:
            del files[path]
    files.update(wanted.additions)
    if not files:
        raise InvalidInput(
            "Nothing would be left: a version needs at least one file.",
            hint="Delete the repository, if that is meant.",
        )
    if len(files) > MAX_FILES:
        raise InvalidInput(f"{len(files)} files are more than the {MAX_FILES} of one version.")
    for path, problem in manifests.clashes(list(files)):
        raise InvalidInput(f"{path}: {problem}.", errors=[{"loc": ["files", path], "msg": problem}])
    return files


def _draft(blobs: Blobs, wanted: Commit, head: _Head, files: dict[str, FileEntry]) -> _Draft:
    kind = head.kind if head.fixed else judging.kind_by_content(files)
    new = [entry for path, entry in files.items() if head.files.get(path) != entry]
    judging.vet_contents(blobs, new)
    keeps = _same(kind, head.files, files)
    meta = _meta(blobs, kind, head, files, keeps=keeps)
    history = History(wanted.branch, head.commit, _message(wanted))
    return _Draft(kind, list(files.values()), meta, history, keeps)


def _same(kind: ArtifactKind, old: dict[str, FileEntry], new: dict[str, FileEntry]) -> bool:
    """Say whether what a job would have made is untouched: cards may change, weights may not."""

    def made(files: dict[str, FileEntry]) -> set[tuple[str, str]]:
        return {(p, f.sha256) for p, f in files.items() if judging.is_made(kind, p)}

    return bool(made(old)) and made(old) == made(new)


def _meta(
    blobs: Blobs, kind: ArtifactKind, head: _Head, files: dict[str, FileEntry], *, keeps: bool
) -> dict[str, Any]:
    meta = {key: value for key, value in head.meta.items() if key != INCOMPLETE} if keeps else {}
    missing = judging.lacking(kind, files)
    if missing:
        lacks = f"This {kind.value} is not complete: it has no {' or '.join(missing)}."
        meta[INCOMPLETE] = judging.advice(files) or lacks
    elif kind == ArtifactKind.DATASET and "dataset" not in meta:
        features = head.meta.get("features")
        data = [entry for path, entry in files.items() if judging.is_data(path)]
        meta |= {"features": features} if features else {}
        meta |= judging.judge(blobs, kind, data, meta)
    return meta


def _message(wanted: Commit) -> str:
    title = " ".join(wanted.title.split()) or "Upload with huggingface_hub"
    text = wanted.description.strip()
    if len(title) > MAX_TITLE or len(text) > MAX_TEXT:
        raise InvalidInput(
            f"A commit's title has at most {MAX_TITLE} characters and its text {MAX_TEXT}; these"
            f" have {len(title)} and {len(text)}.",
            errors=[{"loc": ["summary"], "msg": "too long"}],
        )
    if any((ord(c) < 32 and c not in "\n\t\r") or 0xD800 <= ord(c) <= 0xDFFF for c in title + text):
        raise InvalidInput("A commit's message must be text, without control characters.")
    return f"{title}\n\n{text}" if text else title


# --- Making it ----------------------------------------------------------------------------


def _parents(session: Session, head: _Head, draft: _Draft) -> list[Parent]:
    """What the head was made from, this was made from as well, unless its bytes are others."""
    if not draft.keeps or head.version_id is None:
        return []
    rows = session.execute(
        select(Lineage.role, Version)
        .join(Version, Version.id == Lineage.parent_id)
        .where(Lineage.child_id == head.version_id)
    )
    return [(role, version) for role, version in rows]


def _compose(head: _Head, draft: _Draft, session: Session, there: dict[str, Digests]) -> bytes:
    artifact = session.get_one(Artifact, head.artifact_id)
    return registry.compose(
        there,
        artifact.project,
        artifact.name,
        draft.kind,
        draft.files,
        draft.meta,
        _parents(session, head, draft),
        history=draft.history,
    )


def _make(
    database: Database, blobs: Blobs, actor: Actor, wanted: Commit, head: _Head, draft: _Draft
) -> str | None:
    """Make the version, if the branch is still at ``head``; None if it is not."""
    with database.transaction() as session:
        artifact = _artifact(session, actor, wanted)
        project = session.get_one(Project, artifact.project_id)
        quota.check(session, project, {f.sha256: f.size for f in wanted.additions.values()})
        artifact = registry.locked(session, Artifact.id == artifact.id)
        if artifact.deleted_at is not None or artifact.project_id != project.id:
            return None  # the next look says what became of it
        branches.check_writable(session, artifact, wanted.branch)
        version = registry.head(session, artifact, wanted.branch)
        _check_parent(wanted, version)
        if (version.id if version else None) != head.version_id:
            return None
        if not registry.may_be(session, artifact, draft.kind):
            return None
        made = registry.publish(
            session,
            blobs,
            project=project,
            name=artifact.name,
            kind=draft.kind,
            files=draft.files,
            meta=draft.meta,
            parents=_parents(session, head, draft),
            created_by=actor.user_id,
            history=draft.history,
        )
        branches.advance(session, actor, artifact, wanted.branch, made)
        told = {"branch": wanted.branch, "commit": made.commit}
        access.audit(session, actor, "version.publish", registry.label(made), told)
        return made.id
