"""A backup of one stack is another one: on either database, in either store."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from espalier.errors import Conflict, InvalidInput, NotFound
from espalier.settings import Settings
from espalier.states import ArtifactKind
from scheduler import access
from scheduler.access import first_broken_audit
from scheduler.bytes import gc
from scheduler.catalog import heads
from scheduler.db import Database, now
from scheduler.models import (
    Artifact,
    Attempt,
    Audit,
    Blob,
    Event,
    Job,
    Token,
    Upload,
    Worker,
)
from scheduler.store import Driver, open_driver
from scheduler.store.base import blob_key
from scheduler.store.directory import Directory
from scheduler.upkeep import backup, fsck, restore, snapshot
from tests.conftest import create_database
from tests.integration.store.shop import Shop, assert_downloads, contents, store


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    shop = Shop.filled(database, Settings(store_url=f"file://{tmp_path / 'store'}"))
    shop.begin("going-on")
    shop.stack.submit({"data": "team/wikisql"}, name="team/waiting")
    return shop


def rows(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Return all that a snapshot holds, but what a restore sets anew."""
    anew = {
        "blobs": {"touched_at"},
        "artifacts": {"head"},
        "workers": {"installation"},
    }
    with database.reading() as session:
        found = {}
        for table in snapshot.tables():
            if table.name in ("tokens", "uploads", "audit"):
                continue
            query = select(table).order_by(*table.primary_key.columns)
            found[table.name] = [
                {k: v for k, v in row.items() if k not in anew.get(table.name, ())}
                for row in session.execute(query).mappings()
            ]
        return found


def test_a_restored_stack_is_the_one_that_was_saved(
    shop: Shop,
    tmp_path: Path,
    elsewhere: Driver,
    new_url: str,
    opened: Callable[[], Database],
) -> None:
    saved = backup.backup(shop.database, shop.driver, tmp_path / "backup")
    assert saved.blobs == saved.copied > 0
    restored = restore.restore(new_url, elsewhere, tmp_path / "backup")
    assert restored == saved
    database = opened()
    assert rows(database) == rows(shop.database)
    there = Shop(database, Settings(store_url=elsewhere_url(elsewhere)))
    assert assert_downloads(database, there.blobs) == assert_downloads(shop.database, shop.blobs)
    heads.write_due(database, lambda: elsewhere)
    assert fsck.check(database, elsewhere, deep=True).findings == []
    with database.transaction() as session:
        assert first_broken_audit(session) is None
        access.audit(
            session, shop.actor, "after", "the restore"
        )  # the counters are behind the rows
    with database.reading() as session:
        assert first_broken_audit(session) is None


def elsewhere_url(driver: Driver) -> str:
    assert isinstance(driver, Directory)
    return f"file://{driver.root}"


def test_what_ran_goes_back_into_the_queue_and_on(
    shop: Shop, tmp_path: Path, elsewhere: Driver, new_url: str, opened: Callable[[], Database]
) -> None:
    backup.backup(shop.database, shop.driver, tmp_path / "backup")
    restore.restore(new_url, elsewhere, tmp_path / "backup")
    database = opened()
    there = Shop(database, Settings(store_url=elsewhere_url(elsewhere)))
    worker = there.stack.worker("studio-1")  # the same Mac, started again
    with database.reading() as session:
        assert session.scalars(select(Worker.id)).all() == [worker]
        states = dict(session.execute(select(Job.name, Job.state)).all())
    assert states["team/going-on"] == states["team/waiting"] == "queued"
    with database.transaction() as session:
        session.execute(update(Job).values(not_before=None))
    names = set()
    for _ in range(2):
        ticket = there.stack.claimed()
        there.stack.finish(ticket)
        with database.reading() as session:
            names.add(session.get_one(Attempt, ticket.attempt_id).job.name)
    assert names == {"team/going-on", "team/waiting"}
    with database.reading() as session:
        assert set(session.scalars(select(Job.state))) == {"succeeded"}
        events = session.scalar(select(func.count()).select_from(Event))
        assert events


def test_another_snapshot_copies_only_what_is_new(shop: Shop, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    first = backup.backup(shop.database, shop.driver, target)
    again = backup.backup(shop.database, shop.driver, target)
    assert (again.copied, again.blobs) == (0, first.blobs)
    shop.bring("notes", ArtifactKind.DATASET, {"train.jsonl": b'{"text": "new"}\n'})
    third = backup.backup(shop.database, shop.driver, target)
    assert third.copied == 2, "the file and the manifest"
    assert backup.find(target)[1] == third
    assert backup.find(target, first.name)[1] == first


def test_blobs_of_one_disk_are_linked_or_copied_as_asked(shop: Shop, tmp_path: Path) -> None:
    backup.backup(shop.database, shop.driver, tmp_path / "linked")
    backup.backup(shop.database, shop.driver, tmp_path / "copied", link=False)
    with shop.database.reading() as session:
        key = blob_key(session.scalars(select(Blob.sha256)).all()[0])
    assert isinstance(shop.driver, Directory)
    mine = shop.driver.path_of(key)
    assert (tmp_path / "linked" / key).samefile(mine)
    assert not (tmp_path / "copied" / key).samefile(mine)
    assert (tmp_path / "copied" / key).read_bytes() == mine.read_bytes()


def test_sessions_and_links_do_not_come_back_and_programs_stay_signed_in(
    shop: Shop, tmp_path: Path, elsewhere: Driver, new_url: str, opened: Callable[[], Database]
) -> None:
    with shop.database.transaction() as session:
        user = access.ensure_first_run(session)
        secrets = {
            kind: access.mint(session, kind, user=user)
            for kind in ("personal", "session", "login", "join")
        }
    backup.backup(shop.database, shop.driver, tmp_path / "backup")
    for path in (tmp_path / "backup" / "snapshots").rglob("*.jsonl"):
        assert not any(secret in path.read_text() for secret in secrets.values())
    restore.restore(new_url, elsewhere, tmp_path / "backup")
    with opened().reading() as session:
        assert set(session.scalars(select(Token.kind))) == {"personal", "worker"}


# --- What must be refused -----------------------------------------------------------------


def test_a_stack_that_holds_something_is_not_written_over(
    shop: Shop, tmp_path: Path, elsewhere: Driver
) -> None:
    backup.backup(shop.database, shop.driver, tmp_path / "backup")
    with pytest.raises(Conflict, match="not empty"):
        restore.restore(shop.database.url, elsewhere, tmp_path / "backup")
    assert list(elsewhere.list("blobs/")) == []


def test_a_backup_that_is_not_whole_is_refused_before_anything_is_written(
    shop: Shop, tmp_path: Path, elsewhere: Driver, new_url: str, opened: Callable[[], Database]
) -> None:
    target = tmp_path / "backup"
    with pytest.raises(NotFound, match="no backup"):
        restore.restore(new_url, elsewhere, target)
    saved = backup.backup(shop.database, shop.driver, target, link=False)
    folder = target / "snapshots" / saved.name
    jobs = folder / "jobs.jsonl"
    whole = jobs.read_bytes()
    jobs.write_bytes(whole.replace(b"team/tuned", b"team/other", 1))
    with pytest.raises(InvalidInput, match=r"jobs.jsonl is not what was written"):
        restore.restore(new_url, elsewhere, target)
    jobs.write_bytes(whole)

    path = next((target / "blobs").rglob("?" * 64))
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(InvalidInput, match="is not there"):
        restore.restore(new_url, elsewhere, target)
    path.write_bytes(bytes(len(content)))
    with pytest.raises(InvalidInput, match="other bytes"):
        backup.verify(target, Directory(target), deep=True, tell=lambda _: None)
    assert list(elsewhere.list("blobs/")) == []

    path.write_bytes(content)
    backup.verify(target, Directory(target), deep=True, tell=lambda _: None)
    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "revision": "0001"}))
    with pytest.raises(InvalidInput, match="schema 0001"):
        restore.restore(new_url, elsewhere, target)
    manifest.write_text(json.dumps(document))
    restore.restore(new_url, elsewhere, target)
    assert rows(opened()) == rows(shop.database)


def test_a_restore_that_was_cut_goes_on(
    shop: Shop, tmp_path: Path, elsewhere: Driver, new_url: str, opened: Callable[[], Database]
) -> None:
    saved = backup.backup(shop.database, shop.driver, tmp_path / "backup", link=False)
    puts: list[str] = []

    class Cut(Directory):
        """A store that is killed half way."""

        def move(self, source: str, target: str) -> None:
            if len(puts) == saved.blobs // 2:
                raise KeyboardInterrupt
            puts.append(target)
            super().move(source, target)

    assert isinstance(elsewhere, Directory)
    with pytest.raises(KeyboardInterrupt):
        restore.restore(new_url, Cut(elsewhere.root), tmp_path / "backup")
    database = opened()
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Audit)) == 0
    arrived = {stored.key: stored.modified for stored in elsewhere.list("blobs/")}
    assert len(arrived) == saved.blobs // 2
    restore.restore(new_url, elsewhere, tmp_path / "backup")
    after = {stored.key: stored.modified for stored in elsewhere.list("blobs/")}
    assert {key: after[key] for key in arrived} == arrived, "what had arrived was not sent again"
    assert rows(database) == rows(shop.database)
    assert list(elsewhere.list("staging/")) == []


# --- While the stack runs -----------------------------------------------------------------


def test_garbage_collection_waits_for_a_backup(shop: Shop, tmp_path: Path) -> None:
    unused = shop.upload(b"nobody refers to this", "user:a")
    with shop.database.transaction() as session:
        for table in (Blob, Upload):
            session.execute(update(table).values(touched_at=now(session) - 2 * gc.GRACE))
    found = []

    class Slow(Directory):
        """A store in which collection is tried while the backup copies."""

        def adopt(self, source: Path, key: str) -> bool:
            raise AssertionError("the target is not this one")

        def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            if not found:
                found.append(gc.collect(shop.database, shop.blobs))
            return super().open(key, start, length)

    assert isinstance(shop.driver, Directory)
    saved = backup.backup(shop.database, Slow(shop.driver.root), tmp_path / "backup", link=False)
    assert found[0].held
    assert found[0].blobs == 0
    assert saved.gone == saved.lost == ()
    backup.verify(tmp_path / "backup", Directory(tmp_path / "backup"), deep=True, tell=print)
    assert gc.collect(shop.database, shop.blobs).blobs >= 1
    assert shop.driver.size(blob_key(unused)) is None


def test_two_backups_at_once_take_turns(shop: Shop, tmp_path: Path) -> None:
    gc.hold(shop.database, "another")
    with pytest.raises(Conflict, match="Another backup"):
        backup.backup(shop.database, shop.driver, tmp_path / "backup")
    gc.let_go(shop.database, "another")
    backup.backup(shop.database, shop.driver, tmp_path / "backup")


def test_a_snapshot_is_of_one_moment(shop: Shop, tmp_path: Path) -> None:
    """Jobs are submitted all the while; each is in the snapshot with all that belongs to it."""
    stopping, begun = threading.Event(), threading.Event()

    def busy() -> None:
        number = 0
        while not stopping.is_set():
            shop.stack.submit({"data": "team/wikisql"}, name=f"team/busy-{number}")
            number += 1
            if number == 3:
                begun.set()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        assert begun.wait(60)
        saved = backup.backup(shop.database, shop.driver, tmp_path / "backup")
    finally:
        stopping.set()
        thread.join(60)
    folder = tmp_path / "backup" / "snapshots" / saved.name

    def ids(table: str, column: str) -> set[str]:
        lines = (folder / f"{table}.jsonl").read_text().splitlines()
        return {json.loads(line)[column] for line in lines}

    jobs = ids("jobs", "id")
    assert ids("job_inputs", "job_id") == jobs
    assert ids("events", "job_id") == jobs


def test_a_blob_that_the_store_has_lost_is_marked_after_a_restore(
    shop: Shop, tmp_path: Path, elsewhere: Driver, new_url: str, opened: Callable[[], Database]
) -> None:
    with shop.database.reading() as session:
        tuned = session.scalars(select(Artifact).where(Artifact.name == "tuned")).one()
        lost = tuned.versions[0].files[-1].sha256
    shop.driver.delete(blob_key(lost))
    saved = backup.backup(shop.database, shop.driver, tmp_path / "backup")
    assert saved.lost == (lost,)
    restore.restore(new_url, elsewhere, tmp_path / "backup")
    with opened().reading() as session:
        assert session.get_one(Blob, lost).damaged_at is not None


# --- PostgreSQL and S3 --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_a_teams_installation(
    kind: str, migrated_postgres: str, postgres_url: str, tmp_path: Path
) -> None:
    """PostgreSQL and a bucket, saved to a folder, then brought back into another of each."""
    database = Database(create_database(postgres_url, migrated_postgres))
    new = create_database(postgres_url)
    with store(kind, tmp_path / "old") as settings, store(kind, tmp_path / "new") as others:
        shop = Shop.filled(database, settings)
        backup.backup(database, shop.driver, tmp_path / "backup")
        target = open_driver(others)
        target.probe()
        restore.restore(new, target, tmp_path / "backup")
        restored = Database(new)
        assert contents(restored) == contents(database)
        assert assert_downloads(restored, Shop(restored, others).blobs)
        restored.close()

        # The bucket is saved by itself: only SQL travels.
        slim = backup.backup(database, shop.driver, tmp_path / "slim", with_blobs=False)
        assert not (tmp_path / "slim" / "blobs").exists()
        beside = create_database(postgres_url)
        with pytest.raises(InvalidInput, match="is not there"):
            restore.restore(beside, open_driver(Settings(store_url=f"file://{tmp_path / 'no'}")),
                            tmp_path / "slim")  # fmt: skip
        restore.restore(beside, shop.driver, tmp_path / "slim", slim.name)
        third = Database(beside)
        assert contents(third) == contents(database)
        third.close()
    database.close()


def test_what_a_killed_backup_left_goes(shop: Shop, tmp_path: Path) -> None:
    gone = tmp_path / "backup" / "snapshots" / ".20200101T000000.000000Z.999999999"
    gone.mkdir(parents=True)
    (gone / "jobs.jsonl").write_text("{}")
    backup.backup(shop.database, shop.driver, tmp_path / "backup")
    (name,) = (path.name for path in gone.parent.iterdir())
    assert not name.startswith(".")
