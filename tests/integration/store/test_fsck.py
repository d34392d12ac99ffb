"""Damage is found, named and made good where it can be; the registry comes back from the store."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from espalier.errors import Conflict, InvalidInput
from espalier.messages import FileEntry
from espalier.settings import Settings
from espalier.states import ArtifactKind
from scheduler.access import SYSTEM
from scheduler.bytes import gc
from scheduler.catalog import aliases, heads, publishing, registry, retiring
from scheduler.catalog.publishing import Publication
from scheduler.db import Database, migrate
from scheduler.models import Artifact, Blob, Checkpoint, Job, Version, VersionFile
from scheduler.store.base import BLOBS, QUARANTINE, REGISTRY, blob_key
from scheduler.store.directory import Directory
from scheduler.upkeep import fsck, rebuild
from tests.integration.store.shop import STORES, Shop, assert_downloads, contents, store


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    shop = Shop.filled(database, Settings(store_url=f"file://{tmp_path / 'store'}"))
    heads.write_due(database, lambda: shop.driver)
    return shop


def sha_of(shop: Shop, ref: str, path: str) -> str:
    name, _, number = ref.partition("@v")
    with shop.database.reading() as session:
        found = session.scalar(
            select(VersionFile.sha256)
            .join(VersionFile.version)
            .join(Version.artifact)
            .where(Artifact.name == name, Version.number == int(number), VersionFile.path == path)
        )
    assert found
    return found


def spoil(shop: Shop, sha256: str) -> None:
    """Change a byte and not the length, as a bad disk does."""
    data = bytearray(b"".join(shop.blobs.open(sha256)))
    data[-1] ^= 1
    shop.driver.put(blob_key(sha256), bytes(data))


@pytest.mark.parametrize("few", [50_000, 3])
def test_a_sound_store_is_clean(shop: Shop, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsck, "FEW", few)
    report = fsck.check(shop.database, shop.driver, deep=True)
    assert report.clean
    assert report.findings == []
    assert (report.versions, report.aliases, report.heads, report.orphans) == (5, 1, 3, 0)
    with shop.database.reading() as session:
        sizes = dict(session.execute(select(Blob.sha256, Blob.size)).all())
        used = set(session.scalars(select(VersionFile.sha256)))
    assert (report.blobs, report.bytes) == (len(sizes), sum(sizes.values()))
    assert report.projects == {"team": sum(sizes[name] for name in used)}


def test_lost_and_spoilt_bytes_are_named_with_who_needs_them(shop: Shop) -> None:
    lost = sha_of(shop, "tuned@v1", "adapters.safetensors")
    spoilt = sha_of(shop, "base@v1", "model.safetensors")
    shop.driver.delete(blob_key(lost))
    spoil(shop, spoilt)
    quick = fsck.check(shop.database, shop.driver)
    assert [(f.what, f.name) for f in quick.findings] == [("blob", lost)]
    assert "team/tuned@v1, made by job" in quick.findings[0].advice
    deep = fsck.check(shop.database, shop.driver, deep=True)
    assert {f.name: f.problem.split(" sha256")[0] for f in deep.findings} == {
        lost: "its bytes are not in the store",
        spoilt: "its bytes have",
    }
    assert not deep.clean


def test_what_was_repaired_counts_as_absent_until_it_is_uploaded_again(shop: Shop) -> None:
    spoilt = sha_of(shop, "base@v1", "model.safetensors")
    whole = b"".join(shop.blobs.open(spoilt))
    spoil(shop, spoilt)
    report = fsck.check(shop.database, shop.driver, deep=True, repair=True)
    assert not report.clean, "nothing here can bring the bytes back"
    assert [stored.key for stored in shop.driver.list(QUARANTINE)] == [f"{QUARANTINE}{spoilt}"]
    with shop.database.transaction() as session:
        assert shop.blobs.missing(session, [(spoilt, len(whole))]) == [spoilt]
    files = (FileEntry(path="adapters.safetensors", sha256=spoilt, size=len(whole)),)
    wanted = Publication("team", "copy", ArtifactKind.MODEL, files, {})
    with pytest.raises(InvalidInput):
        publishing.publish(shop.database, shop.blobs, shop.actor, wanted)

    shop.upload(whole, "user:anybody")
    assert fsck.check(shop.database, shop.driver, deep=True).clean
    assert assert_downloads(shop.database, shop.blobs)


def test_bytes_that_came_back_by_themselves_count_again(shop: Shop) -> None:
    sha256 = sha_of(shop, "wikisql@v1", "train.jsonl")
    whole = b"".join(shop.blobs.open(sha256))
    shop.driver.delete(blob_key(sha256))
    fsck.check(shop.database, shop.driver, repair=True)
    shop.driver.put(blob_key(sha256), whole)  # the bucket's own versions, say
    assert not fsck.check(shop.database, shop.driver).clean
    assert fsck.check(shop.database, shop.driver, repair=True).clean
    assert fsck.check(shop.database, shop.driver, deep=True).findings == []


def test_a_lost_manifest_is_written_anew(shop: Shop) -> None:
    with shop.database.reading() as session:
        manifests = session.scalars(select(Version.manifest)).all()
    for sha256 in manifests:
        shop.driver.delete(blob_key(sha256))
    assert not fsck.check(shop.database, shop.driver).clean
    repaired = fsck.check(shop.database, shop.driver, repair=True)
    assert repaired.clean
    assert len(repaired.findings) == len(manifests)
    assert fsck.check(shop.database, shop.driver, deep=True).findings == []


def test_a_row_of_nothing_goes(shop: Shop) -> None:
    sha256 = shop.upload(b"never published", "user:a")
    shop.driver.delete(blob_key(sha256))
    (finding,) = fsck.check(shop.database, shop.driver, repair=True).findings
    assert (finding.name, finding.repaired) == (sha256, True)
    assert fsck.check(shop.database, shop.driver).findings == []


def test_a_job_goes_on_from_the_checkpoint_that_is_whole(shop: Shop) -> None:
    ticket = shop.begin("long")
    shop.save(ticket, 10, b"ten")
    shop.save(ticket, 20, b"twenty")
    with shop.database.reading() as session:
        newest = session.get_one(Checkpoint, (session.scalars(
            select(Job.id).where(Job.name == "team/long")).one(), 20))  # fmt: skip
    shop.driver.delete(blob_key(newest.files[0]["sha256"]))
    report = fsck.check(shop.database, shop.driver, repair=True)
    assert [f.what for f in report.findings] == ["blob", "checkpoint"]
    with shop.database.reading() as session:
        kept = select(Checkpoint.step).where(Checkpoint.job_id == newest.job_id)
        assert session.scalars(kept).all() == [10]


def test_rows_that_differ_from_their_manifest_are_told(shop: Shop) -> None:
    with shop.database.transaction() as session:
        tuned = session.scalars(
            select(Version).join(Version.artifact).where(Artifact.name == "wikisql")
        ).all()
        second = next(version for version in tuned if version.number == 2)
        session.execute(delete(VersionFile).where(
            VersionFile.version_id == second.id, VersionFile.path == "more/notes.txt"))  # fmt: skip
    (finding,) = fsck.check(shop.database, shop.driver).findings
    assert finding.name == "team/wikisql@v2"
    assert "more/notes.txt" in finding.problem


def test_orphans_and_heads(shop: Shop) -> None:
    shop.driver.put(blob_key("0" * 64), b"a crash before the row")
    shop.driver.put(heads.key("team", "tuned"), b"{}")
    report = fsck.check(shop.database, shop.driver)
    assert (report.orphans, report.orphan_names) == (1, [blob_key("0" * 64)])
    assert [f.what for f in report.findings] == ["head"]
    assert fsck.check(shop.database, shop.driver, repair=True).clean
    head = json.loads(b"".join(shop.driver.open(heads.key("team", "tuned"))))
    assert head["names"] == {"production": {"kind": "alias", "version": 1}}
    assert [version["number"] for version in head["versions"]] == [1, 2]
    assert head["versions"][0]["worker"] == "studio-1"


def test_heads_are_due_after_every_change(shop: Shop) -> None:
    def due() -> list[str]:
        with shop.database.reading() as session:
            names = session.scalars(
                select(Artifact.name).where(Artifact.revision != Artifact.head)
            ).all()
        heads.write_due(shop.database, lambda: shop.driver)
        return list(names)

    assert due() == []
    shop.train("tuned")
    assert due() == ["tuned"]
    with shop.database.transaction() as session:
        artifact = registry.find_artifact(session, "team", "tuned")
        aliases.remove_alias(session, SYSTEM, artifact, "production")
    assert due() == ["tuned"]
    with shop.database.transaction() as session:
        artifact = registry.find_artifact(session, "team", "tuned")
        retiring.delete_version(session, SYSTEM, artifact.versions[-1])
    assert due() == ["tuned"]
    assert fsck.check(shop.database, shop.driver).findings == []


def test_names_that_differ_in_case_have_heads_of_their_own() -> None:
    assert heads.key("team", "Tuned").lower() != heads.key("team", "tuned").lower()


# --- The registry from the store ----------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'new' / 'espalier.db'}"
    migrate(url)
    database = Database(url)
    yield database
    database.close()


@pytest.mark.parametrize("kind", STORES)
def test_the_registry_comes_back_from_the_store(
    kind: str, database: Database, empty: Database, tmp_path: Path
) -> None:
    with store(kind, tmp_path) as settings:
        shop = Shop.filled(database, settings)
        with database.transaction() as session:
            artifact = registry.find_artifact(session, "team", "wikisql")
            retiring.delete_version(session, SYSTEM, artifact.versions[-1])
        heads.write_due(database, lambda: shop.driver)
        before = contents(database)

        made = rebuild.rebuild(empty, shop.driver)
        assert made.lost == []
        assert (made.projects, made.artifacts, made.versions, made.aliases) == (1, 3, 5, 1)
        after = contents(empty)
        checkpoint = before["blobs"] - after["blobs"]
        assert len(checkpoint) == 1, "a job's checkpoint belongs to no version"
        del before["blobs"], after["blobs"]
        assert after == before

        again = Shop(empty, settings)
        assert assert_downloads(empty, again.blobs) == assert_downloads(database, shop.blobs)
        heads.write_due(empty, lambda: shop.driver)
        report = fsck.check(empty, shop.driver, deep=True)
        assert (report.findings, report.orphans) == ([], 1)
        again.train("tuned")
        assert contents(empty)["team/tuned"]["latest"] == 3


def test_a_registry_that_holds_something_is_not_rebuilt(shop: Shop) -> None:
    with pytest.raises(Conflict, match="not empty"):
        rebuild.rebuild(shop.database, shop.driver)


def test_what_the_store_has_lost_is_lost_and_said(shop: Shop, empty: Database) -> None:
    lost = sha_of(shop, "tuned@v2", "adapters.safetensors")
    whole = b"".join(shop.blobs.open(lost))
    shop.driver.delete(blob_key(lost))
    spoil(shop, sha_of(shop, "wikisql@v2", "more/notes.txt"))
    made = rebuild.rebuild(empty, shop.driver)
    assert sorted(line.split(" is not")[0] for line in made.lost) == [
        "team/tuned@v2: adapters.safetensors",
        "team/wikisql@v2: more/notes.txt",
    ]
    again = Shop(empty, Settings(store_url=f"file://{_root(shop)}"))
    again.upload(whole, "user:anybody")
    with empty.reading() as session:
        assert session.get_one(Blob, lost).damaged_at is None


def test_a_version_without_a_head_is_taken_in_when_asked_to(shop: Shop, empty: Database) -> None:
    shop.train("fresh")  # and the database is lost before its head is written
    shop.upload(b'{"artifact":"team/forged","kind":"model"}', "user:eve")
    made = rebuild.rebuild(empty, shop.driver)
    assert made.loose == 1
    assert "team/fresh" in made.lost[0]
    with empty.transaction() as session:
        for table in reversed(Artifact.metadata.sorted_tables):
            session.execute(delete(table))
    made = rebuild.rebuild(empty, shop.driver, adopt=True)
    assert made.lost == []
    assert "team/fresh" in contents(empty)
    assert "team/forged" not in contents(empty)


def test_garbage_collection_leaves_heads_and_takes_the_quarantine(
    shop: Shop, tmp_path: Path
) -> None:
    spoil(shop, sha_of(shop, "base@v1", "model.safetensors"))
    fsck.check(shop.database, shop.driver, deep=True, repair=True)
    with shop.database.transaction() as session:
        session.execute(update(Blob).values(touched_at=Blob.created_at))
    gc.collect(shop.database, shop.blobs, -gc.GRACE)
    assert list(shop.driver.list(QUARANTINE)) == []
    assert len(list(shop.driver.list(REGISTRY))) == 3
    assert list(shop.driver.list(BLOBS))


def _root(shop: Shop) -> Path:
    assert isinstance(shop.driver, Directory)
    return shop.driver.root
