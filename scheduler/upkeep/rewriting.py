"""The rows of a registry that is made anew of what was read in the store."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.ids import new_id
from scheduler.bytes.blobrows import Digests
from scheduler.catalog.registry import MAIN
from scheduler.db import now
from scheduler.models import (
    Alias,
    Artifact,
    Blob,
    FormerName,
    Gate,
    Lineage,
    Project,
    User,
    Version,
    VersionFile,
)


@dataclass(slots=True)
class Rebuilt:
    """What came back, and what did not: ``lost`` in sentences."""

    projects: int = 0
    artifacts: int = 0
    versions: int = 0
    aliases: int = 0  # with branches and tags
    blobs: int = 0
    bytes: int = 0
    loose: int = 0  # manifests that no head names
    lost: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Found:
    """A version in the store: its line in the head, and its manifest."""

    entry: dict[str, Any]
    manifest: dict[str, Any]
    size: int


@dataclass(slots=True)
class Line:
    """An artifact in the store: what its head says, and the versions that were found."""

    project: str
    name: str
    kind: str
    names: dict[str, dict[str, Any]] = field(default_factory=dict)  # aliases, branches, tags
    former: list[str] = field(default_factory=list)
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    latest: int = 0
    created_at: str | None = None
    deleted_at: str | None = None
    versions: dict[int, Found] = field(default_factory=dict)

    @classmethod
    def of(cls, head: dict[str, Any]) -> "Line":
        """Return what a head says (scheduler.catalog.heads.read_all), without its versions."""
        return cls(
            head["project"],
            head["name"],
            head["kind"],
            head["names"],
            head["former"],
            head["gates"],
            head.get("latest", 0),
            head.get("created_at"),
            head["deleted_at"],
        )

    @property
    def path(self) -> str:
        return f"{self.project}/{self.name}"


class Writer:
    """Writes what was read, in one transaction."""

    def __init__(
        self,
        session: Session,
        lines: dict[str, Line],
        blobs: dict[str, Digests | None],
        result: Rebuilt,
    ) -> None:
        self._session = session
        self._lines = lines
        self._blobs = blobs
        self._result = result
        self._moment = now(session)
        self._rows: set[str] = set()
        self._ids: dict[tuple[str, str], str] = {}  # (any of its names, commit) → version's id
        self._projects: dict[str, Project] = {}
        self._users = dict(session.execute(select(User.name, User.id)).all())

    def write(self) -> None:
        """Write all rows; the caller commits."""
        for line in self._lines.values():
            if line.versions:
                self._artifact(line)
        for line in self._lines.values():
            for found in line.versions.values():
                self._parents(line, found)

    def _project(self, name: str) -> Project:
        if name not in self._projects:
            project = self._session.scalar(select(Project).where(Project.name == name))
            if project is None:
                project = Project(name=name, created_at=self._moment)
                self._session.add(project)
                self._session.flush()
            self._projects[name] = project
            self._result.projects += 1
        return self._projects[name]

    def _artifact(self, line: Line) -> None:
        first, last = min(line.versions), max(line.versions)
        born = line.created_at or line.versions[first].entry["created_at"]
        artifact = Artifact(
            project=self._project(line.project),
            name=line.name,
            kind=line.kind,
            latest=max(last, line.latest),
            created_at=_time(born),
            updated_at=_time(line.versions[last].entry["created_at"]),
            deleted_at=_time(line.deleted_at) if line.deleted_at else None,
        )
        self._session.add(artifact)
        made = {
            number: self._version(line, artifact, line.versions[number]) for number in line.versions
        }
        self._session.flush()
        for number, version in made.items():
            self._place(line.versions[number], version, made)
        for name, said in line.names.items():
            self._name(line, artifact, name, said, made.get(said["version"]))
        self._former(line, artifact)
        for alias, gate in line.gates.items():
            told = {**gate, "updated_at": _time(gate["updated_at"])}
            self._session.add(Gate(artifact_id=artifact.id, alias=alias, **told))
        self._session.flush()
        self._result.artifacts += 1

    def _place(self, found: Found, version: Version, made: dict[int, Version]) -> None:
        """Set what was before the version in its branch: by the head, else by its manifest."""
        before = made.get(found.entry.get("previous") or 0)
        if before is None and found.manifest.get("previous"):
            same = (v for v in made.values() if v.commit == found.manifest["previous"])
            before = next(same, None)
        version.previous_id = before.id if before else None

    def _name(
        self, line: Line, artifact: Artifact, name: str, said: dict[str, Any], to: Version | None
    ) -> None:
        if to is None:
            self._result.lost.append(f"{line.path}@{name}: its version.")
            return
        alias = Alias(artifact=artifact, name=name, version=to, kind=said["kind"])
        alias.updated_at = self._moment
        self._session.add(alias)
        self._result.aliases += 1

    def _former(self, line: Line, artifact: Artifact) -> None:
        for path in line.former:
            project, _, name = path.partition("/")
            row = FormerName(project_id=self._project(project).id, name=name)
            row.artifact_id, row.created_at = artifact.id, self._moment
            self._session.add(row)

    def _version(self, line: Line, artifact: Artifact, found: Found) -> Version:
        entry, manifest = found.entry, found.manifest
        name = line.path
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
            branch=entry.get("branch") or manifest.get("branch") or MAIN,
            message=entry.get("message") or manifest.get("message"),
            role=entry.get("role"),
            created_by=self._users.get(entry.get("created_by") or ""),
            created_at=_time(entry["created_at"]),
            deleted_at=deleted,
            files=[VersionFile(path=p, sha256=sha, size=size) for p, (sha, size) in files.items()],
        )
        self._session.add(version)
        for known_as in (line.path, manifest["artifact"], *line.former):
            self._ids[known_as, entry["commit"]] = version.id
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
                git_oid=git_oid or (found.git_oid if found else ""),  # as its manifest has it
                created_at=self._moment,
                touched_at=self._moment,
                damaged_at=None if found else self._moment,
            )
        )
        self._result.blobs += 1
        self._result.bytes += size if found else 0

    def _parents(self, line: Line, found: Found) -> None:
        child = self._ids[line.path, found.entry["commit"]]
        for parent in found.manifest["parents"]:
            name = parent["ref"].partition("@")[0]
            parent_id = self._ids.get((name, parent["commit"]))
            if parent_id is None:
                said = f"{line.path}@v{found.entry['number']}: its parent {parent['ref']}"
                self._result.lost.append(f"{said} is not in the store.")
                continue
            self._session.add(Lineage(parent_id=parent_id, child_id=child, role=parent["role"]))
        self._session.flush()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
