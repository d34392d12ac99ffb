"""Commits: which way each file goes, and then the commit itself, read line by line.

Small files come inside of a commit, in base64; they wait in a temporary file until all of it has
been read and found good, so that a commit that is refused leaves nothing behind.
"""

import base64
import binascii
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from flask import Blueprint, Response, jsonify, request
from sqlalchemy import select

from espalier.errors import InvalidInput, TooLarge
from espalier.messages import FileEntry
from espalier.refs import check_path
from espalier.vetting import is_vetted, vet_file, vet_names
from scheduler.bytes.blobrows import Digests, digests
from scheduler.catalog import commits
from scheduler.catalog.commits import Commit
from scheduler.models import Blob, Version
from scheduler.queries import hub
from web.auth import actor
from web.hub.bodies import items, json_body, parse_object, text
from web.services import services

#: Bytes of one file that comes inside of a commit, of a commit, and what of it stays in memory.
MAX_INLINE, MAX_BODY, IN_MEMORY = 8 << 20, 512 << 20, 8 << 20
#: Changes of one commit, files of one question before it.
MAX_CHANGES, MAX_FILES = 50_000, 1000
_LINE = MAX_INLINE * 4 // 3 + (64 << 10)
_SHA256_DIGITS = 64


def add(blueprint: Blueprint) -> None:
    """Add the routes of commits."""
    repo = "/api/<any(models, datasets):kind>/<project>/<name>"
    blueprint.post(f"{repo}/preupload/<path:rev>")(preupload)
    blueprint.post(f"{repo}/commit/<path:rev>")(commit)


def preupload(kind: str, project: str, name: str, rev: str) -> Response:
    """Tell which files go by LFS and which inside of the commit, and what is there already."""
    wanted = items(json_body(), "files", MAX_FILES)
    paths = [text(item, "path") for item in wanted]
    vet_names(paths)
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        version = hub.branch_head(session, artifact, rev)
        there = {f.path: f.etag for f in hub.files_of(session, version, paths)} if version else {}
    told = []
    for path, item in zip(paths, wanted, strict=True):
        size = item.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidInput(f"{path}: size must be a number of bytes.")
        mode = "lfs" if hub.is_large(path, size) else "regular"
        told.append(
            {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": there.get(path)}
        )
    return jsonify(files=told, commitOid=version.commit if version else None)


def commit(kind: str, project: str, name: str, rev: str) -> Response:
    """Commit the changes in the body to a branch; 412 if its head is not the parent they name."""
    if request.args.get("create_pr", "") not in ("", "0", "false"):
        raise InvalidInput(
            "There are no pull requests here.", hint="Commit to a branch of your own instead."
        )
    with services().database.reading() as session:
        artifact = hub.repository(session, actor(), kind, project, name)
        project, name = artifact.project.name, artifact.name
        branch = hub.branch_name(rev)
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as spool:
        changes = _Changes(spool)
        request.max_content_length = MAX_BODY
        for number, line in _lines(request.stream):
            changes.take(number, line)
        wanted = changes.commit(project, name, branch, _sizes(changes))
        oid = _store(changes, wanted)
    prefix = "datasets/" if kind == "datasets" else ""
    return jsonify(
        success=True,
        commitOid=oid,
        commitUrl=f"{request.host_url}{prefix}{project}/{name}/commit/{oid}",
        hookOutput="",
        pullRequestUrl=None,
    )


def _store(changes: "_Changes", wanted: Commit) -> str:
    """Commit; the bytes that came inside are kept when nothing speaks against it any more."""
    store = services()
    commits.check(store.database, actor(), wanted)
    for path, found in changes.inline.items():
        if is_vetted(path):
            vet_file(path, io.BytesIO(changes.content(path)), found.size)
    for path in changes.inline:
        store.blobs.keep(store.database, changes.content(path))
    version_id = commits.commit(store.database, store.blobs, actor(), wanted)
    with store.database.reading() as session:
        return session.get_one(Version, version_id).commit


def _sizes(changes: "_Changes") -> dict[str, int]:
    """Look up the sizes of files that are named by sha256 only: copies of what is there."""
    names = [sha256 for sha256, size in changes.large.values() if size is None]
    with services().database.reading() as session:
        rows = session.execute(select(Blob.sha256, Blob.size).where(Blob.sha256.in_(names)))
        return dict(rows.all())


def _lines(stream: Any) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line), from 1, of which only one is ever held."""
    reader = io.BufferedReader(stream, 1 << 20)
    number = 0
    while line := reader.readline(_LINE + 1):
        number += 1
        if len(line) > _LINE:
            raise TooLarge(
                f"Line {number} of the commit is longer than {_LINE} bytes.",
                hint=f"Files above {MAX_INLINE} bytes are uploaded by LFS before they are"
                " committed.",
            )
        if number > MAX_CHANGES:
            raise TooLarge(f"A commit has at most {MAX_CHANGES} changes; split it.")
        if line.strip():
            yield number, line


@dataclass
class _Changes:
    """A commit as far as it was read."""

    spool: BinaryIO | Any
    header: dict[str, Any] | None = None
    inline: dict[str, Digests] = field(default_factory=dict)
    large: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    deleted_files: list[str] = field(default_factory=list)
    deleted_folders: list[str] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def take(self, number: int, line: bytes) -> None:
        """Read one line. Raises Malformed, InvalidInput."""
        found = parse_object(line, f"Line {number} of the commit", long=("value", "content"))
        key, value = found.get("key"), found.get("value")
        if not isinstance(value, dict):
            raise InvalidInput(f"Line {number} of the commit has no value.")
        if key == "header":
            self.header = value
            return
        path = text(value, "path")
        if key == "file":
            self._file(path, value)
        elif key == "lfsFile":
            self._large(path, value)
        elif key == "deletedFile":
            self.deleted_files.append(check_path(path))
        elif key == "deletedFolder":
            self.deleted_folders.append(check_path(path.rstrip("/")))
        else:
            raise InvalidInput(f"Line {number} of the commit is {key!r:.40}: nothing known.")

    def _file(self, path: str, value: dict[str, Any]) -> None:
        vet_names([path])
        content = text(value, "content")
        if value.get("encoding", "base64") != "base64":
            raise InvalidInput(f"{path}: its encoding must be base64.")
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(f"{path}: its content is not base64: {error}.") from error
        if len(data) > MAX_INLINE:
            raise TooLarge(f"{path} has {len(data)} bytes: above {MAX_INLINE} upload it by LFS.")
        self.large.pop(path, None)
        self._places[path] = self.spool.seek(0, io.SEEK_END)
        self.spool.write(data)
        self.inline[path] = digests([data], len(data))

    def _large(self, path: str, value: dict[str, Any]) -> None:
        vet_names([path])
        sha256, size = text(value, "oid"), value.get("size")
        if len(sha256) != _SHA256_DIGITS or set(sha256) - set("0123456789abcdef"):
            raise InvalidInput(f"{path}: its oid {sha256!r:.80} is no sha256.")
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            raise InvalidInput(f"{path}: size must be a number of bytes.")
        self.inline.pop(path, None)
        self.large[path] = (sha256, size)

    def content(self, path: str) -> bytes:
        """Return the bytes of a file that came inside."""
        self.spool.seek(self._places[path])
        data: bytes = self.spool.read(self.inline[path].size)
        return data

    def commit(self, project: str, name: str, branch: str, sizes: dict[str, int]) -> Commit:
        """Return what is wanted; ``sizes`` are of large files that came without."""
        if self.header is None:
            raise InvalidInput("The commit has no header: it begins with its summary.")
        parent = self.header.get("parentCommit")
        if parent is not None and not isinstance(parent, str):
            raise InvalidInput("parentCommit must be a text.")
        additions = {
            path: FileEntry(path=path, sha256=found.sha256, size=found.size)
            for path, found in self.inline.items()
        }
        for path, (sha256, size) in self.large.items():
            known = sizes.get(sha256, 0) if size is None else size
            additions[path] = FileEntry(path=path, sha256=sha256, size=known)
        return Commit(
            project=project,
            name=name,
            branch=branch,
            title=str(self.header.get("summary") or ""),
            description=str(self.header.get("description") or ""),
            parent_commit=parent,
            additions=additions,
            deleted_files=tuple(self.deleted_files),
            deleted_folders=tuple(self.deleted_folders),
            sent=frozenset(found.sha256 for found in self.inline.values()),
        )
