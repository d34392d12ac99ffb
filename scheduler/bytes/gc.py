"""Garbage collection: bytes that nothing refers to, after a grace, leave the store.

Kept are the files of versions that are not deleted (nor their artifacts), that a name points at or
that an open job uses, all manifests, the checkpoints of jobs that can still go on, open uploads,
xorbs that Xet's clients may refer to (scheduler.bytes.xet), and whatever was touched within the
grace: whoever is about to refer to a blob touches it (scheduler.bytes.blobrows). A blob's row and
its bytes go under one lock of the row, so that nobody takes up what is being deleted. While a
backup copies what its snapshot names, no blob goes (see hold).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast

from sqlalchemy import ColumnElement, CursorResult, and_, delete, exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from espalier.errors import Conflict
from espalier.states import JOB_ENDED, JOB_OPEN
from scheduler.bytes import xet
from scheduler.bytes.blobs import Blobs
from scheduler.db import Database, now
from scheduler.models import (
    Alias,
    Artifact,
    Blob,
    Checkpoint,
    Job,
    JobInput,
    Presence,
    Project,
    Upload,
    Version,
    VersionFile,
)
from scheduler.placing import holdings
from scheduler.store.base import BLOBS, QUARANTINE, STAGING, blob_key

#: How long what nothing refers to stays.
GRACE = timedelta(days=7)
#: How long a backup that was killed holds collection up; one that runs says again that it does.
HOLD = timedelta(minutes=10)
_HOLD = "backup"


@dataclass(slots=True)
class Collected:
    """What was removed, or would be: blobs and their bytes, uploads given up by their owners, and

    objects in the store that no row knows (what crashes leave). ``projects`` says whose the bytes
    were, by name; those of no version, such as checkpoints and what was never published, are
    nobody's, under the empty name.
    """

    dry_run: bool
    held: bool = False  # by a backup: blobs were left alone
    blobs: int = 0
    bytes: int = 0
    uploads: int = 0
    orphans: int = 0
    projects: dict[str, int] = field(default_factory=dict)

    def count(self, size: int, owner: str) -> None:
        """Count one blob."""
        self.blobs += 1
        self.bytes += size
        self.projects[owner] = self.projects.get(owner, 0) + size


def forecast(database: Database, grace: timedelta = GRACE) -> Collected:
    """Say what `collect` would remove of what SQL knows; the store is not asked."""
    found = Collected(dry_run=True)
    with database.reading() as session:
        before = now(session) - grace
        found.held = _is_held(session)
        unused = _unused(session, before)
        owners = _owners_of(session, unused)
        for sha256, size in unused:
            found.count(size, owners.get(sha256, ""))
        idle = select(func.count()).where(Upload.touched_at < before)
        found.uploads = session.scalar(idle) or 0
    return found


def collect(
    database: Database, blobs: Blobs, grace: timedelta = GRACE, dry_run: bool = False
) -> Collected:
    """Remove what nothing refers to and nobody touched within ``grace``; say how much it was.

    Raises Unavailable when the store is away; called again, it goes on.
    """
    found = Collected(dry_run)
    with database.reading() as session:
        before = now(session) - grace
        found.held = _is_held(session)
        unused = [] if found.held else _unused(session, before)
        owners = _owners_of(session, unused)
    if not dry_run and not found.held:
        _let_go(database, before)
    for sha256, size in unused:
        if dry_run or _delete(database, blobs, sha256, before):
            found.count(size, owners.get(sha256, ""))
    found.uploads = _give_up(database, blobs, before, dry_run)
    found.orphans = _sweep_staging(database, blobs, before, dry_run)
    found.orphans += _sweep_quarantine(blobs, before, dry_run)
    found.orphans += _sweep_blobs(database, blobs, before, dry_run)
    return found


# --- Held by a backup ---------------------------------------------------------------------


def hold(database: Database, holder: str) -> None:
    """Leave all blobs where they are for HOLD from now, for the backup ``holder``.

    Raises Conflict while another one holds them.
    """
    with database.transaction() as session:
        moment = now(session)
        mine = update(Presence).where(
            Presence.name == _HOLD, or_(Presence.holder == holder, Presence.expires_at <= moment)
        )
        values = {"holder": holder, "seen_at": moment, "expires_at": moment + HOLD}
        if cast("CursorResult[tuple[()]]", session.execute(mine.values(values))).rowcount:
            return
        try:
            with session.begin_nested():
                session.add(Presence(name=_HOLD, since=moment, **values))
        except IntegrityError:
            raise Conflict(
                "Another backup of this stack is running.",
                hint=f"Wait for its end; one that was killed is forgotten {HOLD} after.",
            ) from None


def let_go(database: Database, holder: str) -> None:
    """End the backup's hold."""
    with database.transaction() as session:
        session.execute(delete(Presence).where(Presence.name == _HOLD, Presence.holder == holder))


def _is_held(session: Session) -> bool:
    until = session.scalar(select(Presence.expires_at).where(Presence.name == _HOLD))
    return until is not None and until > now(session)


# --- Blobs --------------------------------------------------------------------------------


def _is_past(before: datetime) -> ColumnElement[bool]:
    """Jobs that ended so long ago that nobody goes on from their checkpoints."""
    return and_(Job.state.in_(JOB_ENDED), Job.finished_at < before)


def _in_use() -> ColumnElement[bool]:
    """Versions that a job needs which has not ended; submitted as the version was deleted."""
    return exists().where(
        JobInput.version_id == Version.id, Job.id == JobInput.job_id, Job.state.in_(JOB_OPEN)
    )


def _is_named() -> ColumnElement[bool]:
    """Versions that a name points at, in an artifact that is there."""
    return exists().where(
        Alias.version_id == Version.id,
        Artifact.id == Alias.artifact_id,
        Artifact.deleted_at.is_(None),
    )


def _is_gone(before: datetime) -> ColumnElement[bool]:
    """Versions that were deleted, or their artifacts, so long ago that nobody brings them back."""
    artifact = exists().where(Artifact.id == Version.artifact_id, Artifact.deleted_at < before)
    return and_(or_(Version.deleted_at < before, artifact), ~_in_use(), ~_is_named())


def _unused(session: Session, before: datetime) -> list[tuple[str, int]]:
    """Return (sha256, bytes) of the blobs that nothing keeps."""
    in_version = exists().where(
        VersionFile.sha256 == Blob.sha256,
        Version.id == VersionFile.version_id,
        # What deleted_at is unknown of is not gone: NOT of NULL would be no answer.
        ~func.coalesce(_is_gone(before), False),
    )
    is_manifest = exists().where(Version.manifest == Blob.sha256)
    in_upload = exists().where(Upload.sha256 == Blob.sha256, Upload.touched_at >= before)
    rows = session.execute(
        select(Blob.sha256, Blob.size).where(
            Blob.touched_at < before, ~in_version, ~is_manifest, ~in_upload, ~xet.is_kept()
        )
    )
    kept = select(Checkpoint.files).join(Job, Job.id == Checkpoint.job_id).where(~_is_past(before))
    in_checkpoint = {file["sha256"] for files in session.scalars(kept) for file in files}
    return [(row.sha256, row.size) for row in rows if row.sha256 not in in_checkpoint]


def _owners_of(session: Session, unused: Sequence[tuple[str, int]]) -> dict[str, str]:
    """Return whose blobs these were: sha256 → the first project, by name, of a deleted version."""
    found: dict[str, str] = {}
    for first in range(0, len(unused), 1000):
        rows = session.execute(
            select(VersionFile.sha256, func.min(Project.name))
            .join(Version, Version.id == VersionFile.version_id)
            .join(Artifact, Artifact.id == Version.artifact_id)
            .join(Project, Project.id == Artifact.project_id)
            .where(VersionFile.sha256.in_([name for name, _ in unused[first : first + 1000]]))
            .group_by(VersionFile.sha256)
        )
        found.update(rows.all())
    return found


def _let_go(database: Database, before: datetime) -> None:
    """Drop the file lists of versions deleted long ago, the checkpoints of past jobs, and what

    was in the caches of workers that are gone.
    """
    with database.transaction() as session:
        gone = select(Version.id).where(_is_gone(before))
        session.execute(delete(VersionFile).where(VersionFile.version_id.in_(gone)))
        past = select(Job.id).where(_is_past(before))
        session.execute(delete(Checkpoint).where(Checkpoint.job_id.in_(past)))
        holdings.forget(session, before)
        xet.forget(session)


def _delete(database: Database, blobs: Blobs, sha256: str, before: datetime) -> bool:
    """Delete row and bytes, unless somebody has begun to use the blob meanwhile."""
    with database.transaction() as session:
        if _is_held(session):
            return False
        result = session.execute(
            delete(Blob).where(
                Blob.sha256 == sha256,
                Blob.touched_at < before,
                ~exists().where(VersionFile.sha256 == sha256),
                ~exists().where(Version.manifest == sha256),
                ~xet.is_kept(),
            )
        )
        if not cast("CursorResult[tuple[()]]", result).rowcount:
            return False
        blobs.driver.delete(blob_key(sha256))
        return True


# --- Uploads and what crashes leave -------------------------------------------------------


def _give_up(database: Database, blobs: Blobs, before: datetime, dry_run: bool) -> int:
    with database.reading() as session:
        idle = session.scalars(select(Upload).where(Upload.touched_at < before)).all()
    if not dry_run:
        for upload in idle:
            with database.transaction() as session:
                session.execute(
                    delete(Upload).where(Upload.id == upload.id, Upload.touched_at < before)
                )
                gone = session.get(Upload, upload.id) is None
            if gone:
                blobs.discard(upload)
    return len(idle)


def _sweep_staging(database: Database, blobs: Blobs, before: datetime, dry_run: bool) -> int:
    found = 0
    objects = [stored for stored in blobs.driver.list(STAGING) if stored.modified < before]
    begun = [parts for parts in blobs.driver.uploads() if parts.begun < before]
    with database.reading() as session:
        live = set(session.scalars(select(Upload.id)))
    for stored in objects:
        if _upload_id(stored.key) not in live:
            found += 1
            if not dry_run:
                blobs.driver.delete(stored.key)
    for parts in begun:
        if _upload_id(parts.key) not in live:
            found += 1
            if not dry_run:
                blobs.driver.abort(parts.key, parts.handle)
    return found


def _sweep_quarantine(blobs: Blobs, before: datetime, dry_run: bool) -> int:
    """Delete what fsck put aside: bytes that were not what their name said."""
    old = [stored.key for stored in blobs.driver.list(QUARANTINE) if stored.modified < before]
    if not dry_run:
        for key in old:
            blobs.driver.delete(key)
    return len(old)


def _upload_id(key: str) -> str:
    return key.removeprefix(STAGING).split(".")[0]


def _sweep_blobs(database: Database, blobs: Blobs, before: datetime, dry_run: bool) -> int:
    """Delete objects among the blobs that no row knows: stored, and never committed."""
    found = 0
    for batch in _batches(blobs, before):
        with database.reading() as session:
            known = set(session.scalars(select(Blob.sha256).where(Blob.sha256.in_(batch))))
        for sha256 in batch.keys() - known:
            if dry_run or _delete_unknown(database, blobs, sha256, batch[sha256]):
                found += 1
    return found


def _batches(blobs: Blobs, before: datetime) -> Iterator[dict[str, str]]:
    """Yield up to 1000 times sha256 → key of objects that are older than the grace.

    What lies there under another name is not ours to delete.
    """
    batch: dict[str, str] = {}
    for stored in blobs.driver.list(BLOBS):
        sha256 = stored.key.rsplit("/", 1)[-1]
        if stored.modified < before and len(sha256) == 64 and stored.key == blob_key(sha256):
            batch[sha256] = stored.key
        if len(batch) == 1000:
            yield batch
            batch = {}
    yield batch


def _delete_unknown(database: Database, blobs: Blobs, sha256: str, key: str) -> bool:
    """Delete an object while holding the row that its uploader would have to insert."""
    with database.transaction() as session:
        moment = now(session)
        try:
            with session.begin_nested():
                session.add(
                    Blob(sha256=sha256, size=0, git_oid="", created_at=moment, touched_at=moment)
                )
        except IntegrityError:
            return False
        blobs.driver.delete(key)
        session.execute(delete(Blob).where(Blob.sha256 == sha256))
        return True
