"""Who may read a blob: people what their projects hold, workers what their attempts need."""

from collections.abc import Collection

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from espalier.states import ATTEMPT_LIVE
from scheduler.access import Actor, visible_projects
from scheduler.models import (
    Artifact,
    Attempt,
    Blob,
    Checkpoint,
    JobInput,
    Upload,
    Version,
    VersionFile,
)

#: Files of one size that are looked through for somebody's own.
_ALIKE = 1000


def _there(actor: Actor) -> tuple[ColumnElement[bool], ...]:
    """What a version must be for the actor to read it; of a deleted artifact nothing is there."""
    return Version.deleted_at.is_(None), Artifact.deleted_at.is_(None), visible_projects(actor)


def size_for_person(session: Session, actor: Actor, sha256: str) -> int | None:
    """Return the blob's bytes if a version in one of the actor's projects holds it."""
    return session.scalar(
        select(VersionFile.size)
        .join(VersionFile.version)
        .join(Version.artifact)
        .join(Artifact.project)
        .where(VersionFile.sha256 == sha256, *_there(actor))
        .limit(1)
    )


def held_by_person(session: Session, actor: Actor, names: Collection[str]) -> set[str]:
    """Return those sha256 that the actor has shown to have: may read, or has uploaded.

    Publishing takes no others: who merely knows the sha256 of another project's file would
    otherwise get the file.
    """
    found: set[str] = set()
    wanted = sorted(set(names))
    for first in range(0, len(wanted), 1000):
        some = wanted[first : first + 1000]
        found.update(
            session.scalars(
                select(VersionFile.sha256)
                .join(VersionFile.version)
                .join(Version.artifact)
                .join(Artifact.project)
                .where(VersionFile.sha256.in_(some), *_there(actor))
            )
        )
        uploads = session.scalars(
            select(Upload).where(Upload.owner == f"user:{actor.user_id}", Upload.sha256.in_(some))
        )
        found.update(upload.sha256 for upload in uploads if upload.driver_state.get("complete"))
    return found


def holds_size(session: Session, actor: Actor, size: int) -> bool:
    """Say whether the actor has shown to have any file of so many bytes, or may well have.

    Asked before a file's sha256 is known: what it answers, they know.
    """
    alike = session.scalars(select(Blob.sha256).where(Blob.size == size).limit(_ALIKE + 1)).all()
    return len(alike) > _ALIKE or bool(held_by_person(session, actor, alike))


def size_for_worker(session: Session, worker_id: str, sha256: str) -> int | None:
    """Return the blob's bytes if a live attempt of the worker needs it.

    Its inputs, and the checkpoints it may resume from.
    """
    jobs = select(Attempt.job_id).where(
        Attempt.worker_id == worker_id, Attempt.state.in_(ATTEMPT_LIVE)
    )
    size = session.scalar(
        select(VersionFile.size)
        .join(JobInput, JobInput.version_id == VersionFile.version_id)
        .where(VersionFile.sha256 == sha256, JobInput.job_id.in_(jobs))
        .limit(1)
    )
    if size is not None:
        return size
    saved = session.scalars(select(Checkpoint.files).where(Checkpoint.job_id.in_(jobs)))
    for files in saved:
        for file in files:
            if file["sha256"] == sha256:
                return int(file["size"])
    return None
