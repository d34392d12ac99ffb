"""What happens at once: collection beside uploads and publishing, crashes between store and SQL.

Every meeting is arranged by a store that stops inside a call until the test lets it go on.
"""

import hashlib
import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from espalier.errors import InvalidInput, NotFound, StorageFull
from espalier.messages import FileEntry
from espalier.settings import Settings
from espalier.states import ArtifactKind
from scheduler.bytes import gc
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import publishing
from scheduler.catalog.publishing import Publication
from scheduler.db import Database, now
from scheduler.models import Blob, Checkpoint, Job, Upload, Version, VersionFile
from scheduler.store.base import blob_key
from scheduler.store.directory import Directory
from scheduler.upkeep import fsck
from tests.integration.store.shop import Shop, assert_downloads

DAY = timedelta(days=1)
PATIENCE = 120.0


class Gate(Directory):
    """A directory whose ``method`` stops before (or after) its work until ``open_gate``."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.there, self.open_gate = threading.Event(), threading.Event()
        self.before: str | None = None
        self.after: str | None = None

    def _stop(self) -> None:
        self.before = self.after = None
        self.there.set()
        assert self.open_gate.wait(PATIENCE)

    def delete(self, key: str) -> None:
        if self.before == "delete" and key.startswith("blobs/"):
            self._stop()
        super().delete(key)

    def move(self, source: str, target: str) -> None:
        super().move(source, target)
        if self.after == "move":
            self._stop()

    def put(self, key: str, data: bytes) -> None:
        if self.before == "put" and key.startswith("blobs/"):
            self._stop()
        super().put(key, data)
        if self.after == "put" and key.startswith("blobs/"):
            self._stop()


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    return Shop(database, Settings(store_url=f"file://{tmp_path / 'store'}"))


@pytest.fixture
def gate(shop: Shop, tmp_path: Path) -> Gate:
    """The same store with a gate; ``shop.blobs`` goes past it."""
    return Gate(tmp_path / "store")


def gated(shop: Shop, gate: Gate) -> Blobs:
    return Blobs(gate, Settings(store_url=f"file://{gate.root}"))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def age(shop: Shop, by: timedelta = 30 * DAY) -> None:
    """Make everything that is there now older."""
    with shop.database.transaction() as session:
        then = now(session) - by
        for table in (Blob, Upload):
            session.execute(update(table).values(touched_at=then))
        session.execute(update(Job).values(finished_at=then))
    assert isinstance(shop.driver, Directory)
    for path in shop.driver.root.rglob("*"):
        with suppress(FileNotFoundError):
            os.utime(path, (then.timestamp(), then.timestamp()))


def at_once(work: Callable[[], object]) -> "Future[object]":
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


def test_who_reuses_a_blob_that_is_being_collected_is_asked_for_it(shop: Shop, gate: Gate) -> None:
    data = b"old and unused"
    shop.upload(data, "user:a")
    age(shop)
    gate.before = "delete"
    sweeping = at_once(lambda: gc.collect(shop.database, gated(shop, gate), DAY))
    assert gate.there.wait(PATIENCE)  # the row's lock is held, the bytes are still there
    uploading = at_once(lambda: shop.upload(data, "user:b"))
    gate.open_gate.set()
    sweeping.result(PATIENCE)
    uploading.result(PATIENCE)
    assert b"".join(shop.blobs.open(sha(data))) == data
    assert fsck.check(shop.database, shop.driver, deep=True).findings == []


def test_what_is_being_published_is_not_collected(shop: Shop) -> None:
    """The transaction that publishes has touched the file, and is not committed yet."""
    data = b'{"text": "x"}\n'
    name = shop.upload(data, f"user:{shop.actor.user_id}")
    age(shop)
    listed, published = threading.Barrier(2), threading.Event()
    real = gc._unused

    def slow(session: object, before: object) -> object:
        found = real(session, before)  # type: ignore[arg-type]
        listed.wait(PATIENCE)
        assert published.wait(PATIENCE)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "_unused", slow)
        sweeping = at_once(lambda: gc.collect(shop.database, shop.blobs, DAY))
        listed.wait(PATIENCE)  # collection has listed the file as unused
        files = (FileEntry(path="train.jsonl", sha256=name, size=len(data)),)
        wanted = Publication("team", "late", ArtifactKind.DATASET, files, {})
        publishing.publish(shop.database, shop.blobs, shop.actor, wanted)
        published.set()
        found = sweeping.result(PATIENCE)
    assert isinstance(found, gc.Collected)
    assert found.blobs == 0
    assert assert_downloads(shop.database, shop.blobs) == 1


def test_bytes_that_were_moved_and_have_no_row_yet_may_go_and_the_upload_begins_again(
    shop: Shop, gate: Gate
) -> None:
    """The mover was so slow that its bytes look like a crash's; it must not commit their row."""
    data = b"moved, and not committed"
    slow = gated(shop, gate)
    gate.after = "move"
    with shop.database.transaction() as session:
        upload_id = str(slow.open_upload(session, "user:a", sha(data), len(data)).upload_id)
    slow.put_part(shop.database, upload_id, "user:a", 1, io.BytesIO(data))
    completing = at_once(lambda: slow.complete(shop.database, upload_id, "user:a"))
    assert gate.there.wait(PATIENCE)
    age(shop, 2 * DAY)
    with shop.database.transaction() as session:  # the upload itself is still young
        session.execute(update(Upload).values(touched_at=now(session)))
    assert gc.collect(shop.database, shop.blobs, DAY).orphans == 1
    gate.open_gate.set()
    with pytest.raises(NotFound, match="to go on with"):
        completing.result(PATIENCE)
    with shop.database.reading() as session:
        assert session.get(Blob, sha(data)) is None
    shop.upload(data, "user:a")
    assert fsck.check(shop.database, shop.driver, deep=True).findings == []


def test_a_manifest_that_was_swept_before_its_row_is_put_again(shop: Shop, gate: Gate) -> None:
    slow = gated(shop, gate)
    gate.after = "put"
    keeping = at_once(lambda: slow.keep(shop.database, b"a manifest"))
    assert gate.there.wait(PATIENCE)
    age(shop)
    assert gc.collect(shop.database, shop.blobs, DAY).orphans == 1
    gate.open_gate.set()
    assert keeping.result(PATIENCE) == sha(b"a manifest")
    assert b"".join(shop.blobs.open(sha(b"a manifest"))) == b"a manifest"


def test_no_lock_is_held_while_a_manifest_is_stored(shop: Shop, gate: Gate) -> None:
    """A store that hangs in the middle of a publication holds up nobody's transaction."""
    data = b'{"text": "x"}\n'
    name = shop.upload(data, f"user:{shop.actor.user_id}")
    files = (FileEntry(path="train.jsonl", sha256=name, size=len(data)),)
    wanted = Publication("team", "slow", ArtifactKind.DATASET, files, {})
    gate.before = "put"
    slow = gated(shop, gate)
    publishing_ = at_once(lambda: publishing.publish(shop.database, slow, shop.actor, wanted))
    assert gate.there.wait(PATIENCE)
    with shop.database.transaction() as session:  # SQLite would say that it is locked
        session.execute(update(Blob).values(touched_at=now(session)))
    gate.open_gate.set()
    publishing_.result(PATIENCE)
    assert assert_downloads(shop.database, shop.blobs) == 1


def test_a_version_of_bytes_that_the_store_lost_is_refused_and_they_are_asked_for(
    shop: Shop,
) -> None:
    data = b'{"text": "x"}\n'
    name = shop.upload(data, f"user:{shop.actor.user_id}")
    files = (FileEntry(path="train.jsonl", sha256=name, size=len(data)),)
    wanted = Publication("team", "data", ArtifactKind.DATASET, files, {})

    class Forgetful(Directory):
        """Gives the bytes to who reads them, and has lost them then."""

        def size(self, key: str) -> int | None:
            return None if key == blob_key(name) else super().size(key)

    assert isinstance(shop.driver, Directory)
    forgetful = Blobs(Forgetful(shop.driver.root), Settings())
    with pytest.raises(InvalidInput, match="not uploaded"):
        publishing.publish(shop.database, forgetful, shop.actor, wanted)
    with shop.database.transaction() as session:
        assert session.scalars(select(Version)).all() == []
        assert shop.blobs.missing(session, [(name, len(data))]) == [name]
    shop.upload(data, f"user:{shop.actor.user_id}")
    publishing.publish(shop.database, shop.blobs, shop.actor, wanted)


def test_a_job_keeps_the_input_that_was_deleted_as_it_was_submitted(shop: Shop) -> None:
    filled = Shop.filled(shop.database, Settings(store_url=f"file://{_root(shop)}"))
    ticket = filled.begin("late")
    filled.save(ticket, 10, b"a checkpoint of a job that runs")
    with shop.database.transaction() as session:
        moment = now(session) - 30 * DAY
        session.execute(update(Version).values(deleted_at=moment))
    age(shop)
    with shop.database.transaction() as session:
        session.execute(update(Job).where(Job.name == "team/late").values(finished_at=None))
    gc.collect(shop.database, shop.blobs, DAY)
    with shop.database.reading() as session:
        job = session.scalars(select(Job).where(Job.name == "team/late")).one()
        versions = [item.version_id for item in job.inputs]
        used = select(VersionFile.sha256).where(VersionFile.version_id.in_(versions))
        inputs = session.scalars(used).all()
        steps = session.scalars(select(Checkpoint.step)).all()
    assert len(inputs) == 7, "model and data"
    for name in [*inputs, sha(b"a checkpoint of a job that runs")]:
        assert shop.driver.size(blob_key(name)) is not None
    assert steps == [10], "those of the jobs that ended are released"


def test_an_upload_that_cannot_fit_is_refused_at_once(shop: Shop) -> None:
    room = shop.driver.room()
    assert room
    with shop.database.transaction() as session, pytest.raises(StorageFull, match="do not fit"):
        shop.blobs.open_upload(session, "user:a", "0" * 64, 2 * room)
    with shop.database.transaction() as session:
        assert session.scalars(select(Upload)).all() == []
        session.execute(delete(Upload))


def _root(shop: Shop) -> Path:
    assert isinstance(shop.driver, Directory)
    return shop.driver.root
