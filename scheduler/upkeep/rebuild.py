"""The registry made anew of the store alone: of heads, which name versions, and of manifests.

For the day when the database is gone and there is no backup of it. Projects, artifacts, versions
with their numbers, aliases and lineage come back; people, tokens, jobs and their logs do not. No
byte is believed: every blob is read and hashed before its row is written.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from espalier.errors import Conflict, NotFound
from espalier.ids import new_id
from scheduler import heads, manifests
from scheduler.access import SYSTEM, audit
from scheduler.blobrows import Digests, digests
from scheduler.db import Database, now
from scheduler.models import (
    Alias,
    Artifact,
    Blob,
    Lineage,
    Project,
    User,
    Version,
    VersionFile,
)
from scheduler.store.base import BLOBS, Driver, blob_key

#: How every manifest begins: canonical JSON sorts its keys.
_MAGIC = b'{"artifact":"'
#: No manifest is longer; larger objects are not looked into.
_MAX_MANIFEST = 64 << 20


@dataclass(slots=True)
class Rebuilt:
    """What came back, and what did not: ``lost`` in sentences."""

    projects: int = 0
    artifacts: int = 0
    versions: int = 0
    aliases: int = 0
    blobs: int = 0
    bytes: int = 0
    loose: int = 0  # manifests that no head names
    lost: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Found:
    """A version in the store: its line in the head, and its manifest."""

    entry: dict[str, Any]
    manifest: dict[str, Any]
    size: int


@dataclass(slots=True)
class _Line:
    """An artifact in the store."""

    project: str
    name: str
    kind: str
    versions: dict[int, _Found] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)


def rebuild(
    database: Database,
    driver: Driver,
    *,
    adopt: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Rebuilt:
    """Fill an empty registry from the store; called again after a crash, it begins anew.

    ``adopt`` makes versions of manifests that no head names too, numbered behind the others: they
    were published in the last moments before the database was lost, or deleted from it, or forged
    by somebody who may upload. Raises Conflict when the registry is not empty.
    """
    _must_be_empty(database)
    result = Rebuilt()
    tell("heads and manifests")
    lines = _read_lines(driver, result)
    _look_for_loose(driver, lines, result, adopt=adopt)
    blobs = _hash_all(driver, lines, result, tell)
    tell("the database")
    with database.transaction() as session:
        _Writer(session, lines, blobs, result).write()
        audit(session, SYSTEM, "registry.rebuild", driver.place[:320], {"blobs": result.blobs})
    return result


def _must_be_empty(database: Database) -> None:
    with database.reading() as session:
        for table in (Artifact, Blob):
            if session.scalar(select(func.count()).select_from(table)):
                raise Conflict(
                    "The registry is not empty: it can be rebuilt in a new database only.",
                    hint="`espalier fsck --repair` puts single things right. To begin anew, move"
                    " the database away first.",
                )


# --- Reading the store --------------------------------------------------------------------


def _read_lines(driver: Driver, result: Rebuilt) -> dict[str, _Line]:
    """Return artifact (``project/name``) → what its head and its manifests say."""
    lines: dict[str, _Line] = {}
    for key, head in heads.read_all(driver):
        if head is None:
            result.lost.append(f"{key} is no head that can be read.")
            continue
        line = _Line(head["project"], head["name"], head["kind"], aliases=head["aliases"])
        lines[f"{line.project}/{line.name}"] = line
        for entry in head["versions"]:
            found = _read_version(driver, entry, result, f"{line.project}/{line.name}")
            if found is not None:
                line.versions[entry["number"]] = found
    return lines


def _read_version(
    driver: Driver, entry: dict[str, Any], result: Rebuilt, artifact: str
) -> _Found | None:
    name = f"{artifact}@v{entry['number']}"
    try:
        data = b"".join(driver.open(blob_key(entry["manifest"])))
    except NotFound:
        result.lost.append(f"{name}: its manifest {entry['manifest']} is not in the store.")
        return None
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != entry["manifest"] or manifests.commit(data) != entry["commit"]:
        result.lost.append(f"{name}: its manifest {entry['manifest']} has other bytes.")
        return None
    manifest = json.loads(data)
    if manifest["artifact"] != artifact:
        result.lost.append(f"{name}: its manifest is of {manifest['artifact']}.")
        return None
    return _Found(entry, manifest, len(data))


def _look_for_loose(
    driver: Driver, lines: dict[str, _Line], result: Rebuilt, *, adopt: bool
) -> None:
    known = {found.entry["manifest"] for line in lines.values() for found in line.versions.values()}
    known |= {sha256 for sha256, _ in _files(lines)}
    for modified, sha256, manifest, data in sorted(
        _loose(driver, known), key=lambda found: found[:2]
    ):
        result.loose += 1
        commit = manifests.commit(data)
        if not adopt:
            result.lost.append(
                f"{manifest['artifact']}, commit {commit}: no head names it; --adopt takes it in."
            )
            continue
        project, _, name = manifest["artifact"].partition("/")
        line = lines.setdefault(manifest["artifact"], _Line(project, name, manifest["kind"]))
        number = max(line.versions, default=0) + 1
        entry = {
            "number": number,
            "commit": commit,
            "manifest": sha256,
            "created_at": modified.isoformat(),
        }
        line.versions[number] = _Found(entry, manifest, len(data))


def _loose(
    driver: Driver, known: set[str]
) -> Iterator[tuple[datetime, str, dict[str, Any], bytes]]:
    """Yield (modified, sha256, manifest, its bytes) of manifests that are not ``known``."""
    for stored in driver.list(BLOBS):
        sha256 = stored.key.rsplit("/", 1)[-1]
        if sha256 in known or stored.key != blob_key(sha256) or stored.size > _MAX_MANIFEST:
            continue
        if b"".join(driver.open(stored.key, 0, len(_MAGIC))) != _MAGIC:
            continue
        data = b"".join(driver.open(stored.key))
        try:
            manifest = json.loads(data)
            sound = manifests.canonical(manifest) == data and manifest.keys() == _KEYS
        except ValueError:
            continue
        if sound and hashlib.sha256(data).hexdigest() == sha256:
            yield stored.modified, sha256, manifest, data


_KEYS = {"artifact", "kind", "files", "parents", "meta", "job"}


def _files(lines: dict[str, _Line]) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in lines.values():
        for found in line.versions.values():
            for file in found.manifest["files"].values():
                yield file["sha256"], file


def _hash_all(
    driver: Driver, lines: dict[str, _Line], result: Rebuilt, tell: Callable[[str], None]
) -> dict[str, Digests | None]:
    """Return sha256 → what was read back, None where it is gone or is something else."""
    wanted = {sha256: int(file["size"]) for sha256, file in _files(lines)}
    for line in lines.values():
        wanted |= {found.entry["manifest"]: found.size for found in line.versions.values()}
    read: dict[str, Digests | None] = {}
    for number, (sha256, size) in enumerate(wanted.items()):
        if number % 100 == 0:
            tell(f"blobs, {number} of {len(wanted)}")
        read[sha256] = None
        if driver.size(blob_key(sha256)) == size:
            found = digests(driver.open(blob_key(sha256)), size)
            read[sha256] = found if (found.sha256, found.size) == (sha256, size) else None
    return read


# --- Writing the rows ---------------------------------------------------------------------


class _Writer:
    """Writes what was read, in one transaction."""

    def __init__(
        self,
        session: Session,
        lines: dict[str, _Line],
        blobs: dict[str, Digests | None],
        result: Rebuilt,
    ) -> None:
        self._session = session
        self._lines = lines
        self._blobs = blobs
        self._result = result
        self._moment = now(session)
        self._rows: set[str] = set()
        self._ids: dict[tuple[str, str], str] = {}  # (artifact, commit) → id of the version
        self._users = dict(session.execute(select(User.name, User.id)).all())

    def write(self) -> None:
        projects = {
            name: self._project(name) for name in sorted({x.project for x in self._lines.values()})
        }
        for line in self._lines.values():
            if line.versions:
                self._artifact(projects[line.project], line)
        for artifact, line in self._lines.items():
            for found in line.versions.values():
                self._parents(artifact, found)

    def _project(self, name: str) -> Project:
        project = self._session.scalar(select(Project).where(Project.name == name))
        if project is None:
            project = Project(name=name, created_at=self._moment)
            self._session.add(project)
            self._session.flush()
        self._result.projects += 1
        return project

    def _artifact(self, project: Project, line: _Line) -> None:
        first, last = min(line.versions), max(line.versions)
        artifact = Artifact(
            project=project,
            name=line.name,
            kind=line.kind,
            latest=last,
            created_at=_time(line.versions[first].entry["created_at"]),
            updated_at=_time(line.versions[last].entry["created_at"]),
        )
        self._session.add(artifact)
        made = {number: self._version(artifact, line.versions[number]) for number in line.versions}
        self._session.flush()
        for name, number in line.aliases.items():
            if number in made:
                moment = self._moment
                alias = Alias(artifact=artifact, name=name, version=made[number], updated_at=moment)
                self._session.add(alias)
                self._result.aliases += 1
            else:
                self._result.lost.append(f"{line.project}/{line.name}@{name}: its version.")
        self._session.flush()
        self._result.artifacts += 1

    def _version(self, artifact: Artifact, found: _Found) -> Version:
        entry, manifest = found.entry, found.manifest
        name = manifest["artifact"]
        files = {path: (file["sha256"], file["size"]) for path, file in manifest["files"].items()}
        deleted = _time(entry["deleted_at"]) if entry.get("deleted_at") else None
        if deleted and any(self._blobs[sha256] is None for sha256, _ in files.values()):
            files = {}  # garbage collection had let them go
        self._blob(entry["manifest"], found.size, "")
        for path, file in manifest["files"].items():
            if path in files:
                self._blob(file["sha256"], file["size"], file["git_oid"])
                if self._blobs[file["sha256"]] is None:
                    said = f"{name}@v{entry['number']}: {path} is not in the store"
                    self._result.lost.append(f"{said}; publish it again, or run its job again.")
        self._session.flush()
        version = Version(
            id=new_id(),
            artifact=artifact,
            number=entry["number"],
            commit=entry["commit"],
            manifest=entry["manifest"],
            size=sum(file["size"] for file in manifest["files"].values()),
            meta=manifest["meta"],
            role=entry.get("role"),
            created_by=self._users.get(entry.get("created_by") or ""),
            created_at=_time(entry["created_at"]),
            deleted_at=deleted,
            files=[VersionFile(path=p, sha256=sha, size=size) for p, (sha, size) in files.items()],
        )
        self._session.add(version)
        self._ids[name, entry["commit"]] = version.id
        self._result.versions += 1
        return version

    def _blob(self, sha256: str, size: int, git_oid: str) -> None:
        if sha256 in self._rows:
            return
        self._rows.add(sha256)
        found = self._blobs[sha256]
        self._session.add(
            Blob(
                sha256=sha256,
                size=size,
                git_oid=found.git_oid if found else git_oid,
                created_at=self._moment,
                touched_at=self._moment,
                damaged_at=None if found else self._moment,
            )
        )
        self._result.blobs += 1
        self._result.bytes += size if found else 0

    def _parents(self, artifact: str, found: _Found) -> None:
        child = self._ids[artifact, found.entry["commit"]]
        for parent in found.manifest["parents"]:
            name = parent["ref"].partition("@")[0]
            parent_id = self._ids.get((name, parent["commit"]))
            if parent_id is None:
                said = f"{artifact}@v{found.entry['number']}: its parent {parent['ref']}"
                self._result.lost.append(f"{said} is not in the store.")
                continue
            self._session.add(Lineage(parent_id=parent_id, child_id=child, role=parent["role"]))
        self._session.flush()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
