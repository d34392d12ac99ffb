"""Garbage collection takes what nothing refers to, and nothing else."""

import hashlib
import io
import os
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from espalier.messages import FileEntry
from espalier.settings import Settings
from espalier.states import ArtifactKind
from scheduler.access import SYSTEM
from scheduler.bytes import gc
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import aliases, registry, retiring
from scheduler.db import Database, now
from scheduler.models import (
    Artifact,
    Attempt,
    Blob,
    Checkpoint,
    Job,
    Project,
    Upload,
    Version,
    VersionFile,
    Worker,
)
from scheduler.store import open_driver
from scheduler.store.base import blob_key

DAY = timedelta(days=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def blobs(root: Path) -> Blobs:
    settings = Settings(store_url=f"file://{root}")
    return Blobs(open_driver(settings), settings)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def publish(session: Session, blobs: Blobs, name: str, data: bytes) -> Version:
    project = session.scalar(select(Project))
    if project is None:
        project = Project(name="team", created_at=now(session))
        session.add(project)
    return registry.publish(
        session,
        blobs,
        project=project,
        name=name,
        kind=ArtifactKind.REPORT,
        files=[FileEntry(path="a", sha256=blobs.put_bytes(session, data), size=len(data))],
        meta={},
        parents=[],
        created_by=None,
    )


def age(database: Database, root: Path, by: timedelta = 30 * DAY) -> None:
    """Make everything that is there now older."""
    with database.transaction() as session:
        then = now(session) - by
        session.execute(update(Blob).values(touched_at=then))
        session.execute(update(Upload).values(touched_at=then))
        session.execute(update(Job).values(finished_at=then))
        session.execute(
            update(Version).where(Version.deleted_at.is_not(None)).values(deleted_at=then)
        )
        session.execute(
            update(Artifact).where(Artifact.deleted_at.is_not(None)).values(deleted_at=then)
        )
    for path in root.rglob("*"):
        os.utime(path, (then.timestamp(), then.timestamp()))


def there(database: Database, blobs: Blobs, data: bytes) -> bool:
    with database.reading() as session:
        row = session.get(Blob, sha(data)) is not None
    assert row == (blobs.driver.size(blob_key(sha(data))) is not None)
    return row


def test_only_what_is_unused_and_old_goes(database: Database, blobs: Blobs, root: Path) -> None:
    with database.transaction() as session:
        version = publish(session, blobs, "kept", b"in a version")
        manifest = version.manifest
        blobs.put_bytes(session, b"unused and old")
    age(database, root)
    with database.transaction() as session:
        blobs.put_bytes(session, b"unused and new")

    would = gc.collect(database, blobs, DAY, dry_run=True)
    assert (would.blobs, would.bytes) == (1, len(b"unused and old"))
    assert there(database, blobs, b"unused and old")
    did = gc.collect(database, blobs, DAY)
    assert (did.blobs, did.bytes, did.uploads, did.orphans) == (would.blobs, would.bytes, 0, 0)
    assert not there(database, blobs, b"unused and old")
    assert there(database, blobs, b"unused and new")
    assert there(database, blobs, b"in a version")
    assert b"".join(blobs.open(manifest))


def test_a_deleted_version_keeps_its_place_and_loses_its_files(
    database: Database, blobs: Blobs, root: Path
) -> None:
    with database.transaction() as session:
        old = publish(session, blobs, "gone", b"one")
        publish(session, blobs, "gone", b"two")
        retiring.delete_version(session, SYSTEM, old)
    age(database, root, timedelta())
    assert gc.collect(database, blobs, DAY).blobs == 0
    age(database, root)
    assert gc.collect(database, blobs, DAY).blobs == 1
    assert not there(database, blobs, b"one")
    assert there(database, blobs, b"two")
    with database.transaction() as session:
        assert session.scalars(select(VersionFile.version_id)).all() != [old.id]
        assert publish(session, blobs, "gone", b"one").number == 1
    assert there(database, blobs, b"one")


def test_a_deleted_artifact_is_collected_after_the_grace_and_its_name_begins_anew(
    database: Database, blobs: Blobs, root: Path
) -> None:
    with database.transaction() as session:
        old = publish(session, blobs, "gone", b"one")
        publish(session, blobs, "stays", b"both")
        publish(session, blobs, "gone", b"both")
        aliases.set_alias(session, SYSTEM, old.artifact, "best", old)
        retiring.delete_artifact(session, SYSTEM, old.artifact)
    age(database, root, timedelta())
    assert gc.collect(database, blobs, DAY).blobs == 0
    age(database, root)
    said = gc.forecast(database, DAY)
    assert (said.blobs, said.bytes, said.projects) == (1, 3, {"team": 3})
    found = gc.collect(database, blobs, DAY, dry_run=True)
    assert (found.blobs, found.projects) == (1, {"team": 3})
    assert there(database, blobs, b"one")
    assert gc.collect(database, blobs, DAY).projects == {"team": 3}
    assert not there(database, blobs, b"one")
    assert there(database, blobs, b"both")
    with database.transaction() as session:
        assert publish(session, blobs, "gone", b"new").number == 3
        assert registry.find_artifact(session, "team", "gone").aliases == []


def test_what_a_name_points_at_is_never_taken(database: Database, blobs: Blobs, root: Path) -> None:
    """Not even when a row says that it was deleted: deletion refuses, and this is the last line."""
    with database.transaction() as session:
        version = publish(session, blobs, "d", b"one")
        aliases.set_alias(session, SYSTEM, version.artifact, "best", version)
        version.deleted_at = now(session)
    age(database, root)
    assert gc.collect(database, blobs, DAY).blobs == 0
    assert there(database, blobs, b"one")
    with database.transaction() as session:
        assert session.scalars(select(VersionFile.path)).all() == ["a"]


@pytest.mark.parametrize(("state", "kept"), [("running", True), ("failed", False)])
def test_checkpoints_stay_while_their_job_can_go_on(
    database: Database, blobs: Blobs, root: Path, state: str, kept: bool
) -> None:
    with database.transaction() as session:
        moment = now(session)
        project = Project(name="team", created_at=moment)
        worker = Worker(name="w", created_at=moment)
        job = Job(
            project=project, kind="train", name="team/x", state=state, spec={}, created_at=moment
        )
        attempt = Attempt(job=job, worker=worker, number=1, state="lost", placed_at=moment)
        session.add_all([attempt, worker])
        session.flush()
        file = {"path": "a", "sha256": blobs.put_bytes(session, b"checkpoint"), "size": 10}
        session.add(
            Checkpoint(
                job_id=job.id, step=1, attempt_id=attempt.id, files=[file], created_at=moment
            )
        )
    assert gc.collect(database, blobs, DAY).blobs == 0
    age(database, root)
    assert gc.collect(database, blobs, DAY, dry_run=True).blobs == (not kept)
    assert gc.collect(database, blobs, DAY).blobs == (not kept)
    assert there(database, blobs, b"checkpoint") == kept
    with database.reading() as session:
        assert len(session.scalars(select(Checkpoint.step)).all()) == kept


def test_uploads_that_were_given_up_go_and_others_stay(
    database: Database, blobs: Blobs, root: Path
) -> None:
    def begin(data: bytes) -> str:
        with database.transaction() as session:
            upload_id = blobs.open_upload(session, "user:a", sha(data), len(data)).upload_id
        assert upload_id
        blobs.put_part(database, upload_id, "user:a", 1, io.BytesIO(data))
        return upload_id

    begin(b"given up")
    age(database, root)
    going_on = begin(b"going on")
    assert gc.collect(database, blobs, DAY).uploads == 1
    staged = [stored.key for stored in blobs.driver.list("staging/")]
    assert [key.split(".")[0] for key in staged] == [f"staging/{going_on}"]
    blobs.complete(database, going_on, "user:a")
    assert there(database, blobs, b"going on")


def test_what_crashes_left_is_swept(database: Database, blobs: Blobs, root: Path) -> None:
    lost = b"moved, and never committed"
    blobs.driver.put(blob_key(sha(lost)), lost)
    blobs.driver.put("staging/nobody.0123", b"part of nothing")
    blobs.driver.put("blobs/README", b"somebody else's")
    assert gc.collect(database, blobs, DAY).orphans == 0
    age(database, root)
    assert gc.collect(database, blobs, DAY, dry_run=True).orphans == 2
    assert gc.collect(database, blobs, DAY).orphans == 2
    assert [stored.key for stored in blobs.driver.list("")] == ["blobs/README"]
    with database.reading() as session:
        assert session.scalars(select(Blob)).all() == []
