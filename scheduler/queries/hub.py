"""The store as the Hugging Face Hub's protocol tells it: repositories, revisions, files.

An artifact is a repository, of the type ``dataset`` or ``model`` (adapters and GGUF files too);
a version is a commit. ``main`` and ``latest`` are the newest version, aliases are branches, and
version numbers (``v3``) are tags: nothing moves them.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from sqlalchemy import and_, select
from sqlalchemy.orm import Session, aliased, contains_eager

from espalier.errors import EspalierError, NotFound
from espalier.refs import ArtifactRef
from espalier.states import JOB_OPEN, ArtifactKind
from scheduler import registry
from scheduler.access import Actor, visible_projects
from scheduler.models import (
    Alias,
    Artifact,
    Blob,
    Job,
    JobInput,
    Project,
    User,
    Version,
    VersionFile,
)
from scheduler.queries import Document, stamp
from scheduler.queries.artifacts import find_artifact

#: The branch that every repository has.
MAIN = "main"
#: Files that clients expect behind an LFS pointer, beside those above LFS_BYTES.
_LFS_SUFFIXES = (".safetensors", ".gguf", ".npz", ".parquet")
LFS_BYTES = 1 << 20
#: Bytes of the pointer that git would keep in a large file's place.
_POINTER_SIZE = 134

_KINDS = {
    "datasets": (ArtifactKind.DATASET,),
    "models": (ArtifactKind.MODEL, ArtifactKind.ADAPTER, ArtifactKind.GGUF),
}


class NoRevision(EspalierError):
    """The repository is there, the revision is not."""

    status, code, title = 404, "revision_not_found", "No such revision"


class NoEntry(EspalierError):
    """The revision is there, the file is not. ``commit`` is the revision's."""

    status, code, title = 404, "entry_not_found", "No such file"

    def __init__(self, detail: str, commit: str) -> None:
        super().__init__(detail)
        self.commit = commit


@dataclass(frozen=True, slots=True)
class File:
    """A file of a revision, as the protocol names it."""

    path: str
    size: int
    sha256: str
    git_oid: str

    @property
    def is_large(self) -> bool:
        return self.size > LFS_BYTES or self.path.endswith(_LFS_SUFFIXES)

    @property
    def etag(self) -> str:
        """The name of its bytes in clients' caches: sha256 of large files, else git's sha1."""
        return self.sha256 if self.is_large else self.git_oid

    def lfs(self) -> Document | None:
        if not self.is_large:
            return None
        return {"sha256": self.sha256, "size": self.size, "pointerSize": _POINTER_SIZE}


# --- Finding ------------------------------------------------------------------------------


def repository(session: Session, actor: Actor, kind: str, project: str, name: str) -> Artifact:
    """Return the artifact behind a repository of type ``models`` or ``datasets``.

    Raises NotFound, also for what the actor may not see and for the other type.
    """
    artifact = find_artifact(session, actor, project, name)
    if artifact.kind not in _KINDS[kind] or not artifact.latest:
        raise NotFound(f"{project}/{name} is a {artifact.kind}: it is not among the {kind}.")
    return artifact


def revision(session: Session, artifact: Artifact, name: str) -> Version:
    """Return the version that a branch, a tag or a commit names. Raises NoRevision."""
    path = f"{artifact.project.name}/{artifact.name}"
    plain = name.removeprefix("refs/heads/").removeprefix("refs/tags/")
    selector = registry.LATEST if plain == MAIN else plain
    try:
        return registry.resolve(
            session, ArtifactRef(artifact.project.name, artifact.name, selector)
        )
    except EspalierError as error:
        raise NoRevision(f"{path} has no revision {name!r}.", hint=error.hint) from error


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


# --- Telling ------------------------------------------------------------------------------


def repo_document(artifact: Artifact, version: Version, files: Sequence[File] | None) -> Document:
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
        "tags": _tags(artifact),
        "usedStorage": version.size,
    }
    if artifact.kind != ArtifactKind.DATASET:
        document |= {"modelId": path, "library_name": "mlx"}
    if files is not None:
        document["siblings"] = [
            {"rfilename": file.path, "size": file.size, "blobId": file.git_oid}
            | ({"lfs": lfs} if (lfs := file.lfs()) else {})
            for file in files
        ]
    return document


def _tags(artifact: Artifact) -> list[str]:
    return [artifact.kind] if artifact.kind == ArtifactKind.DATASET else ["mlx", artifact.kind]


def tree(files: Sequence[File], below: str, *, recursive: bool) -> Iterator[Document]:
    """Yield the entries under the folder ``below`` ("" is the root), in order of path."""
    prefix = f"{below}/" if below else ""
    folders: set[str] = set()
    for file in files:
        if not file.path.startswith(prefix):
            continue
        inner = PurePosixPath(file.path[len(prefix) :])
        parents = [str(folder) for folder in reversed(inner.parents) if str(folder) != "."]
        for folder in parents if recursive else parents[:1]:
            if folder not in folders:
                folders.add(folder)
                yield _folder(prefix + folder)
        if recursive or not parents:
            yield entry(file)


def entry(file: File) -> Document:
    """Return a file as trees list it."""
    found: Document = {
        "type": "file",
        "oid": file.git_oid,
        "size": file.size,
        "path": file.path,
    }
    if file.is_large:
        found["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": _POINTER_SIZE}
    return found


def _folder(path: str) -> Document:
    # Versions hold no git trees: the protocol wants an id, and clients only compare it.
    oid = hashlib.sha1(f"tree {path}".encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def refs_document(session: Session, artifact: Artifact) -> Document:
    """Return branches (``main`` and the aliases) and tags (the version numbers)."""
    versions = session.execute(
        select(Version.number, Version.commit)
        .where(Version.artifact_id == artifact.id, Version.deleted_at.is_(None))
        .order_by(Version.number.desc())
    ).all()
    aliases = session.execute(
        select(Alias.name, Version.commit)
        .join(Alias.version)
        .where(Alias.artifact_id == artifact.id, Alias.name != MAIN)
        .order_by(Alias.name)
    ).all()
    branches = [(MAIN, versions[0].commit)] if versions else []
    branches += [(name, commit) for name, commit in aliases]
    return {
        "branches": [_ref("heads", name, commit) for name, commit in branches],
        "tags": [_ref("tags", f"v{number}", commit) for number, commit in versions],
        "converts": [],
        "pullRequests": [],
    }


def _ref(space: str, name: str, commit: str) -> Document:
    return {"name": name, "ref": f"refs/{space}/{name}", "targetCommit": commit}


def commits(session: Session, version: Version) -> list[Document]:
    """Return the version and those before it, newest first."""
    rows = session.execute(
        select(Version, User.name)
        .outerjoin(User, User.id == Version.created_by)
        .where(
            Version.artifact_id == version.artifact_id,
            Version.number <= version.number,
            Version.deleted_at.is_(None),
        )
        .order_by(Version.number.desc())
    )
    return [
        {
            "id": one.commit,
            "title": f"v{one.number}",
            "message": f"Made by job {one.job_id}." if one.job_id else "",
            "date": stamp(one.created_at),
            "authors": [{"user": name}] if name else [],
        }
        for one, name in rows
    ]


def repositories(
    session: Session,
    actor: Actor,
    kind: str,
    *,
    search: str = "",
    author: str | None = None,
    limit: int,
    offset: int,
) -> list[tuple[Artifact, Version]]:
    """Return the actor's repositories of a type with their newest versions, last changed first."""
    newest = aliased(Version)
    query = (
        select(Artifact, newest)
        .join(Artifact.project)
        .join(newest, and_(newest.artifact_id == Artifact.id, newest.number == Artifact.latest))
        .options(contains_eager(Artifact.project))
        .where(Artifact.kind.in_(_KINDS[kind]), visible_projects(actor))
        .order_by(Artifact.updated_at.desc(), Artifact.id.desc())
        .limit(limit)
        .offset(offset)
    )
    if search:
        query = query.where((Project.name + "/" + Artifact.name).icontains(search, autoescape=True))
    if author:
        query = query.where(Project.name == author)
    return [(artifact, version) for artifact, version in session.execute(query)]


def wanted_upstream(session: Session) -> set[tuple[str, str]]:
    """Return the (type, repository) of another hub that jobs wait for or use."""
    rows = session.execute(
        select(JobInput.role, JobInput.hub_repo)
        .join(Job, Job.id == JobInput.job_id)
        .where(JobInput.hub_repo.is_not(None), Job.state.in_(JOB_OPEN))
    )
    return {("datasets" if role == "data" else "models", str(repo)) for role, repo in rows}
