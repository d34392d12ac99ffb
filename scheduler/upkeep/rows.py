"""The half of fsck that is about what refers to blobs: versions, aliases, checkpoints."""

import hashlib
import json
from itertools import product
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from espalier.errors import NotFound
from espalier.messages import FileEntry
from espalier.states import JOB_OPEN, ArtifactKind
from scheduler.catalog import manifests, registry
from scheduler.catalog.manifests import History
from scheduler.db import Database
from scheduler.models import (
    Alias,
    Artifact,
    Blob,
    Checkpoint,
    FormerName,
    Job,
    Lineage,
    Project,
    Version,
)
from scheduler.store.base import Driver, blob_key
from scheduler.upkeep.findings import Report

_PAGE = 200


def check(database: Database, driver: Driver, report: Report, *, repair: bool) -> None:
    """Look at every version, alias and checkpoint."""
    _versions(database, driver, report)
    _aliases(database, report)
    _checkpoints(database, report, repair=repair)


# --- Versions -----------------------------------------------------------------------------


def _versions(database: Database, driver: Driver, report: Report) -> None:
    last = ""
    while True:
        with database.reading() as session:
            page = session.scalars(
                select(Version)
                .where(Version.id > last)
                .order_by(Version.id)
                .limit(_PAGE)
                .options(selectinload(Version.files))
            ).all()
            for version in page:
                report.versions += 1
                problem = _problem(session, driver, version)
                if problem:
                    report.found(
                        "version", registry.label(version), problem, "Restore a backup of it."
                    )
        if len(page) < _PAGE:
            return
        last = page[-1].id


def _problem(session: Session, driver: Driver, version: Version) -> str:
    try:
        data = b"".join(driver.open(blob_key(version.manifest)))
    except NotFound:
        return ""  # told with the blobs
    if hashlib.sha256(data).hexdigest() != version.manifest:
        return ""  # likewise, by --deep
    if manifests.commit(data) != version.commit:
        return f"its manifest is of commit {manifests.commit(data)}, not {version.commit}"
    said = json.loads(data)
    artifact = version.artifact
    if said["artifact"] not in _paths(session, artifact) or said["kind"] not in _kinds(artifact):
        return f"its manifest is of {said['kind']} {said['artifact']}"
    if version.deleted_at is not None and not version.files:
        return ""  # garbage collection has let them go
    files = {path: (file["sha256"], file["size"]) for path, file in said["files"].items()}
    rows = {file.path: (file.sha256, file.size) for file in version.files}
    if files != rows:
        differ = sorted(path for path in files | rows if files.get(path) != rows.get(path))
        return f"its rows differ from its manifest in {', '.join(differ[:5])}"
    return "" if said["meta"] == version.meta else "its meta differs from its manifest's"


def _paths(session: Session, artifact: Artifact) -> list[str]:
    """Return the artifact's name and those it had: a manifest has that of its day."""
    former = session.execute(
        select(Project.name, FormerName.name)
        .join(Project, Project.id == FormerName.project_id)
        .where(FormerName.artifact_id == artifact.id)
    )
    return [registry.path_of(artifact), *(f"{project}/{name}" for project, name in former)]


def _kinds(artifact: Artifact) -> list[ArtifactKind]:
    """Return what the artifact is, and what it was called before anything whole was in it."""
    kind = ArtifactKind(artifact.kind)
    return [kind, ArtifactKind.MODEL] if kind in registry.MODEL_KINDS else [kind]


def remake_manifest(database: Database, driver: Driver, sha256: str) -> bool:
    """Write a lost manifest anew, of the rows that it was made with; say whether it is the same."""
    with database.reading() as session:
        version = session.scalar(select(Version).where(Version.manifest == sha256).limit(1))
        if version is None or not version.files:
            return False
        artifact = version.artifact
        tries = product(_paths(session, artifact), _kinds(artifact))
        drafts = (_composed(session, version, path, kind) for path, kind in tries)
        data = next((d for d in drafts if hashlib.sha256(d).hexdigest() == sha256), None)
    if data is None:
        return False
    driver.put(blob_key(sha256), data)
    return True


def _composed(session: Session, version: Version, path: str, kind: ArtifactKind) -> bytes:
    names = {file.sha256 for file in version.files}
    oids = dict(
        session.execute(select(Blob.sha256, Blob.git_oid).where(Blob.sha256.in_(names))).all()
    )
    parents = session.execute(
        select(Lineage.role, Version)
        .join(Version, Version.id == Lineage.parent_id)
        .where(Lineage.child_id == version.id)
    ).all()
    return manifests.build(
        path,
        kind,
        files={
            file.path: (
                FileEntry(path=file.path, sha256=file.sha256, size=file.size),
                oids[file.sha256],
            )
            for file in version.files
        },
        parents=[(role, registry.label(parent), parent.commit) for role, parent in parents],
        meta=version.meta,
        job=version.job_id,
        history=_history(session, version),
    )


def _history(session: Session, version: Version) -> History | None:
    """Return where a commit stands; None for what was published without a message."""
    if version.message is None:
        return None
    before = session.get(Version, version.previous_id) if version.previous_id else None
    return History(version.branch, before.commit if before else None, version.message)


# --- Aliases and checkpoints --------------------------------------------------------------


def _aliases(database: Database, report: Report) -> None:
    with database.reading() as session:
        rows = session.execute(
            select(Alias, Version, Artifact)
            .join(Version, Version.id == Alias.version_id)
            .join(Artifact, Artifact.id == Alias.artifact_id)
        )
        for alias, version, artifact in rows:
            report.aliases += 1
            name = f"{artifact.project.name}/{artifact.name}@{alias.name}"
            if version.artifact_id != artifact.id:
                report.found("alias", name, f"it points at {registry.label(version)}", "Set it.")
            elif version.deleted_at is not None:
                report.found("alias", name, "its version was deleted", "Set it to another one.")


def _checkpoints(database: Database, report: Report, *, repair: bool) -> None:
    """Those of jobs that can still go on; the newest that is whole is what they go on from."""
    with database.reading() as session:
        wanted = select(Checkpoint).join(Job, Job.id == Checkpoint.job_id)
        found = session.scalars(wanted.where(Job.state.in_(JOB_OPEN))).all()
        broken = {(c.job_id, c.step): lost for c in found if (lost := _lost(session, c.files))}
    report.checkpoints = len(found)
    for (job_id, step), lost in broken.items():
        report.found(
            "checkpoint",
            f"{step} of job {job_id}",
            f"{', '.join(lost[:5])} of it is lost",
            "--repair lets the job go on from the one before.",
            repaired=repair,
        )
        if repair:
            with database.transaction() as session:
                checkpoint = session.get(Checkpoint, (job_id, step))
                if checkpoint is not None and _lost(session, checkpoint.files):
                    session.delete(checkpoint)


def _lost(session: Session, files: list[dict[str, Any]]) -> list[str]:
    names = [file["sha256"] for file in files]
    there = dict(
        session.execute(
            select(Blob.sha256, Blob.size).where(Blob.sha256.in_(names), Blob.damaged_at.is_(None))
        ).all()
    )
    return [file["path"] for file in files if there.get(file["sha256"]) != file["size"]]
