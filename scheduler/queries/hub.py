"""The store as the Hugging Face Hub's protocol tells it: repositories, revisions, files.

An artifact is a repository, of the type ``dataset`` or ``model`` (adapters and GGUF files too);
a version is a commit. Aliases are told as branches, for clients know nothing else that moves;
version numbers (``v3``) are tags, beside those that people made.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import InvalidInput, NotFound
from espalier.states import ArtifactKind
from scheduler.access import Actor
from scheduler.bytes.blobrows import LARGE, pointer, pointer_oid
from scheduler.catalog import branches, registry
from scheduler.contents.cards import MAX_READ, read_card
from scheduler.models import Artifact, Blob, Version, VersionFile
from scheduler.queries import Document, stamp
from scheduler.queries.artifacts import find_artifact

#: The branch that every repository has.
MAIN = "main"
#: Files that clients expect behind an LFS pointer, beside those above LARGE.
_LFS_SUFFIXES = (".safetensors", ".gguf", ".npz", ".parquet")
#: Slashes that a revision's name may have, where a path follows it.
_DEEPEST = 8
#: Keys of a card that the Hub makes tags of, and what it puts before them.
_TAG_KEYS = {
    "license": "license:",
    "base_model": "base_model:",
    "datasets": "dataset:",
    "language": "",
}

#: Kinds of artifacts by the type of repository that they are.
KINDS = {
    "datasets": (ArtifactKind.DATASET,),
    "models": (ArtifactKind.MODEL, ArtifactKind.ADAPTER, ArtifactKind.GGUF),
}


class NoRevision(NotFound):
    """The repository is there, the revision is not."""

    code, title = "revision_not_found", "No such revision"


class NoEntry(NotFound):
    """The revision is there, the file is not. ``commit`` is the revision's."""

    code, title = "entry_not_found", "No such file"

    def __init__(self, detail: str, commit: str) -> None:
        super().__init__(detail)
        self.commit = commit


@dataclass(frozen=True, slots=True)
class File:
    """A file of a revision, as the protocol names it."""

    path: str
    size: int
    sha256: str
    git_oid: str | None  # None in lists, which do not tell it

    @property
    def is_large(self) -> bool:
        return is_large(self.path, self.size)

    @property
    def etag(self) -> str:
        """The name of its bytes in clients' caches: sha256 of large files, else git's sha1."""
        return self.sha256 if self.is_large or self.git_oid is None else self.git_oid

    @property
    def oid(self) -> str | None:
        """What git would call it: of a large file, the name of its pointer."""
        return pointer_oid(self.sha256, self.size) if self.is_large else self.git_oid

    @property
    def lfs(self) -> Document:
        """What is told of a large file besides, but for its digest."""
        return {"size": self.size, "pointerSize": len(pointer(self.sha256, self.size))}


@dataclass(frozen=True, slots=True)
class Revision:
    """A version as lists of repositories tell it."""

    id: str
    commit: str
    size: int
    created_at: datetime


def is_large(path: str, size: int) -> bool:
    """Say whether a file is known by its sha256, and uploaded by LFS; empty ones never are."""
    return size > LARGE or (size > 0 and path.endswith(_LFS_SUFFIXES))


# --- Finding ------------------------------------------------------------------------------


def repository(session: Session, actor: Actor, kind: str, project: str, name: str) -> Artifact:
    """Return the artifact behind a repository of type ``models`` or ``datasets``.

    Raises NotFound, also for what the actor may not see and for the other type.
    """
    artifact = find_artifact(session, actor, project, name)
    if artifact.kind not in KINDS[kind] or not artifact.latest:
        raise NotFound(f"{project}/{name} is a {artifact.kind}: it is not among the {kind}.")
    return artifact


def branch_name(rev: str) -> str:
    """Return the branch that a client calls by its whole reference or by its name."""
    return rev.removeprefix("refs/heads/")


def branch_head(session: Session, artifact: Artifact, rev: str) -> Version | None:
    """Return what commits to ``rev`` build upon; None before the first. Raises as `commits` do."""
    branches.check_writable(session, artifact, branch_name(rev))
    return registry.head(session, artifact, branch_name(rev))


def revision(session: Session, artifact: Artifact, name: str) -> Version:
    """Return the version that a branch, a tag or a commit names. Raises NoRevision."""
    plain = name.removeprefix("refs/heads/").removeprefix("refs/tags/")
    hint = None
    try:
        found = registry.version_of(session, artifact, plain)
    except InvalidInput as error:
        found, hint = None, error.detail
    if found is None:
        raise NoRevision(f"{registry.path_of(artifact)} has no revision {name!r}.", hint=hint)
    return found


def locate(session: Session, artifact: Artifact, rest: str) -> tuple[Version, str]:
    """Return the version and the path that ``revision/path`` names; the path may be empty.

    A branch's name may have slashes in it, and a path has them: what is a revision counts as one,
    the shortest first (no git repository has both ``a`` and ``a/b``). Raises NoRevision.
    """
    words = rest.strip("/").split("/")
    first = 3 if words[0] == "refs" else 1
    for count in range(first, min(len(words), first + _DEEPEST) + 1):
        try:
            found = revision(session, artifact, "/".join(words[:count]))
        except NoRevision:
            continue
        return found, "/".join(words[count:])
    return revision(session, artifact, "/".join(words[:first])), ""


def files_of(
    session: Session, version: Version, paths: Collection[str] | None = None
) -> list[File]:
    """Return the version's files in order of path; of ``paths`` alone where they are given."""
    query = (
        select(VersionFile.path, VersionFile.size, VersionFile.sha256, Blob.git_oid)
        .join(Blob, Blob.sha256 == VersionFile.sha256)
        .where(VersionFile.version_id == version.id)
        .order_by(VersionFile.path)
    )
    if paths is not None:
        query = query.where(VersionFile.path.in_(paths))
    return [File(*row) for row in session.execute(query)]


def file_of(session: Session, version: Version, path: str) -> File:
    """Return one file. Raises NoEntry."""
    found = files_of(session, version, [path])
    if not found:
        label = registry.label(version)
        raise NoEntry(f"{label} has no file {path!r}.", version.commit)
    return found[0]


def card_of(read: Callable[[str], Iterable[bytes]], files: Sequence[File]) -> Document:
    """Return the front matter of the README among the files; {} where it is none, or not sound.

    ``read`` yields a blob's first MAX_READ bytes.
    """
    readme = next((file for file in files if file.path == "README.md"), None)
    if readme is None:
        return {}
    text = b"".join(read(readme.sha256))[:MAX_READ].decode("utf-8", "replace")
    try:
        return read_card(text)
    except InvalidInput:
        return {}  # it was committed all the same: it is for people


# --- Telling ------------------------------------------------------------------------------


def repo_document(
    artifact: Artifact,
    version: Version | Revision,
    files: Sequence[File] | None,
    card: Document | None = None,
) -> Document:
    """Return a repository at a revision; ``files`` is None in lists of repositories."""
    path = f"{artifact.project.name}/{artifact.name}"
    document: Document = {
        "_id": artifact.id,
        "id": path,
        "author": artifact.project.name,
        "sha": version.commit,
        "createdAt": stamp(artifact.created_at),
        "lastModified": stamp(version.created_at),
        "private": True,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags_of(artifact.kind) + _card_tags(card or {}),
        "usedStorage": version.size,
    }
    if artifact.kind != ArtifactKind.DATASET:
        document |= {"modelId": path, "library_name": "mlx"}
    if card:
        document["cardData"] = card
        if isinstance(card.get("pipeline_tag"), str):
            document["pipeline_tag"] = card["pipeline_tag"]
    if files is not None:
        document["siblings"] = [_sibling(file) for file in files]
    return document


def _sibling(file: File) -> Document:
    told: Document = {"rfilename": file.path, "size": file.size}
    if file.git_oid is not None:
        told["blobId"] = file.oid
    if file.is_large:
        told["lfs"] = {"sha256": file.sha256, **file.lfs}
    return told


def tags_of(kind: str) -> list[str]:
    """Return the tags that every repository of a kind has."""
    return [kind] if kind == ArtifactKind.DATASET else ["mlx", kind]


def _card_tags(card: Document) -> list[str]:
    """Return a card's own tags, and what the Hub makes tags of besides."""
    found = list(_texts(card.get("tags")))
    for key, prefix in _TAG_KEYS.items():
        found += [prefix + text for text in _texts(card.get(key))]
    return found[:100]


def _texts(value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


def entry(file: File) -> Document:
    """Return a file as trees list it."""
    found: Document = {
        "type": "file",
        "oid": file.oid,
        "size": file.size,
        "path": file.path,
    }
    if file.is_large:
        found["lfs"] = {"oid": file.sha256, **file.lfs}
    return found


def folder(path: str) -> Document:
    # Versions hold no git trees: the protocol wants an id, and clients only compare it.
    oid = hashlib.sha1(f"tree {path}".encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}
