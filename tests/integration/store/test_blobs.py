"""Uploads: resumable, verified before they count, and idempotent."""

import hashlib
import io
import threading
from pathlib import Path

import pytest
from sqlalchemy import select, update

from espalier.errors import InvalidInput, NotFound, TooLarge
from espalier.settings import Settings
from scheduler.bytes.blobs import Blobs
from scheduler.db import Database
from scheduler.models import Blob, Upload, UploadPart
from scheduler.store import open_driver
from scheduler.store.base import blob_key

MIB = 1 << 20
OWNER = "user:ada"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store_url=f"file://{tmp_path / 'store'}", part_bytes=5 * MIB)


@pytest.fixture
def blobs(settings: Settings) -> Blobs:
    return Blobs(open_driver(settings), settings)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def noise(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(str(seed).encode()).digest(size)


def begin(database: Database, blobs: Blobs, data: bytes, owner: str = OWNER) -> str:
    with database.transaction() as session:
        opened = blobs.open_upload(session, owner, sha(data), len(data))
    assert opened.upload_id
    return opened.upload_id


def send(
    database: Database, blobs: Blobs, upload_id: str, number: int, part: bytes, owner: str = OWNER
) -> None:
    blobs.put_part(database, upload_id, owner, number, io.BytesIO(part))


def upload(database: Database, blobs: Blobs, data: bytes, owner: str = OWNER) -> None:
    with database.transaction() as session:
        upload_id = blobs.open_upload(session, owner, sha(data), len(data)).upload_id
    if upload_id is None:
        return
    for number, start in enumerate(range(0, len(data), 5 * MIB), 1):
        send(database, blobs, upload_id, number, data[start : start + 5 * MIB], owner)
    blobs.complete(database, upload_id, owner)


def staged(blobs: Blobs) -> list[str]:
    return [stored.key for stored in blobs.driver.list("staging/")]


def pointer(data: bytes) -> bytes:
    """What git keeps of a large file (git-lfs, docs/spec.md)."""
    lines = "version https://git-lfs.github.com/spec/v1", f"oid sha256:{sha(data)}"
    return "\n".join((*lines, f"size {len(data)}", "")).encode()


def row(database: Database, data: bytes) -> Blob | None:
    with database.reading() as session:
        return session.get(Blob, sha(data))


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 5 * MIB + 1], ids=["empty", "1", "5M", "5M+1"])
def test_bytes_come_back(database: Database, blobs: Blobs, size: int) -> None:
    data = noise(size)
    upload(database, blobs, data)
    assert b"".join(blobs.open(sha(data))) == data
    blob = row(database, data)
    assert blob
    assert blob.size == size
    known_to_git = data if size <= MIB else pointer(data)
    header = f"blob {len(known_to_git)}\0".encode()
    assert blob.git_oid == hashlib.sha1(header + known_to_git).hexdigest()
    assert staged(blobs) == []


def test_another_process_goes_on_with_the_parts_that_are_there(
    database: Database, blobs: Blobs, settings: Settings
) -> None:
    data = noise(11 * MIB)
    upload_id = begin(database, blobs, data)
    send(database, blobs, upload_id, 2, data[5 * MIB : 10 * MIB])

    later = Blobs(open_driver(settings), settings)
    with database.transaction() as session:
        opened = later.open_upload(session, OWNER, sha(data), len(data))
    assert opened.upload_id == upload_id
    assert [(part.number, part.size) for part in opened.parts] == [(2, 5 * MIB)]
    with pytest.raises(InvalidInput, match="part 1, 3 of 3"):
        later.complete(database, upload_id, OWNER)
    send(database, later, upload_id, 1, data[: 5 * MIB])
    send(database, later, upload_id, 3, data[10 * MIB :])
    later.complete(database, upload_id, OWNER)
    assert b"".join(later.open(sha(data))) == data


def test_wrong_bytes_are_refused_and_nothing_of_them_stays(
    database: Database, blobs: Blobs
) -> None:
    data = noise(1000)
    upload_id = begin(database, blobs, data)
    send(database, blobs, upload_id, 1, noise(1000, seed=1))
    with pytest.raises(InvalidInput, match=sha(data)):
        blobs.complete(database, upload_id, OWNER)
    assert staged(blobs) == []
    assert row(database, data) is None
    assert blobs.driver.size(blob_key(sha(data))) is None
    with database.reading() as session:
        assert session.scalars(select(Upload)).all() == []
        assert session.scalars(select(UploadPart)).all() == []
    upload(database, blobs, data)


@pytest.mark.parametrize("length", [999, 1001])
def test_a_part_of_another_length_is_refused(database: Database, blobs: Blobs, length: int) -> None:
    data = noise(1000)
    upload_id = begin(database, blobs, data)
    with pytest.raises(InvalidInput, match="part"):
        send(database, blobs, upload_id, 1, noise(length))
    with pytest.raises(InvalidInput, match="1 parts of"):
        send(database, blobs, upload_id, 2, data)
    with pytest.raises(InvalidInput, match="not received"):
        blobs.complete(database, upload_id, OWNER)


def test_an_upload_is_its_owners_alone(database: Database, blobs: Blobs) -> None:
    data = noise(10)
    upload_id = begin(database, blobs, data)
    with pytest.raises(NotFound):
        send(database, blobs, upload_id, 1, data, owner="user:eve")
    send(database, blobs, upload_id, 1, data)
    with pytest.raises(NotFound):
        blobs.complete(database, upload_id, "user:eve")


def test_what_is_announced_is_checked(database: Database, blobs: Blobs, tmp_path: Path) -> None:
    small = Settings(store_url=f"file://{tmp_path}", max_upload_bytes=100)
    with database.transaction() as session:
        with pytest.raises(TooLarge, match="101 bytes"):
            Blobs(open_driver(small), small).open_upload(session, OWNER, sha(b""), 101)
        with pytest.raises(InvalidInput, match="not a sha256"):
            blobs.open_upload(session, OWNER, "../../etc/passwd", 1)
        assert blobs.put_bytes(session, b"abc") == sha(b"abc")
        with pytest.raises(InvalidInput, match="3 long, not 4"):
            blobs.missing(session, [(sha(b"abc"), 4)])


def test_done_twice_is_done(database: Database, blobs: Blobs) -> None:
    data = noise(100)
    upload_id = begin(database, blobs, data)
    send(database, blobs, upload_id, 1, data)
    blobs.complete(database, upload_id, OWNER)
    with pytest.raises(NotFound):
        send(database, blobs, upload_id, 1, data)
    blobs.complete(database, upload_id, OWNER)
    assert staged(blobs) == []
    with database.transaction() as session:
        assert blobs.open_upload(session, OWNER, sha(data), 100).upload_id is None


def test_a_crash_between_the_move_and_the_row_is_made_good(
    database: Database, blobs: Blobs
) -> None:
    data = noise(100)
    upload_id = begin(database, blobs, data)
    send(database, blobs, upload_id, 1, data)
    blobs.driver.put(blob_key(sha(data)), data)
    with database.reading() as session:
        blobs.discard(session.get_one(Upload, upload_id))
    blobs.complete(database, upload_id, OWNER)
    assert row(database, data)


def test_who_has_the_sha256_only_gets_nothing_by_losing_an_upload(
    database: Database, blobs: Blobs
) -> None:
    data = noise(100)
    with database.transaction() as session:
        blobs.put_bytes(session, data)
        opened = blobs.open_upload(session, OWNER, sha(data), 100, reuse=False)
    upload_id = str(opened.upload_id)
    send(database, blobs, upload_id, 1, bytes(100))
    with database.reading() as session:
        blobs.discard(session.get_one(Upload, upload_id))
    with pytest.raises(NotFound):
        blobs.complete(database, upload_id, OWNER)
    with database.reading() as session:
        assert session.get(Upload, upload_id) is None


def test_an_upload_that_the_store_has_lost_begins_again(database: Database, blobs: Blobs) -> None:
    data = noise(6 * MIB)
    upload_id = begin(database, blobs, data)
    send(database, blobs, upload_id, 1, data[: 5 * MIB])
    with database.reading() as session:
        blobs.discard(session.get_one(Upload, upload_id))
    with pytest.raises(NotFound, match="to go on with"):
        send(database, blobs, upload_id, 2, data[5 * MIB :])
    assert begin(database, blobs, data) != upload_id
    upload(database, blobs, data)
    assert row(database, data)


def test_two_people_upload_the_same_bytes_at_once(database: Database, blobs: Blobs) -> None:
    data, faults = noise(6 * MIB), []

    def run(owner: str) -> None:
        try:
            upload(database, blobs, data, owner)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(f"user:{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert faults == []
    assert b"".join(blobs.open(sha(data))) == data
    assert staged(blobs) == []


def test_blobs_that_are_reused_are_touched(database: Database, blobs: Blobs) -> None:
    with database.transaction() as session:
        sha256 = blobs.put_bytes(session, b"abc")
        old = session.get_one(Blob, sha256).created_at.replace(year=2000)
        session.execute(update(Blob).values(touched_at=old))
    with database.transaction() as session:
        wanted = [(sha256, 3), (sha(b"x"), 1)]
        assert blobs.missing(session, wanted) == [sha(b"x")]
    blob = row(database, b"abc")
    assert blob
    assert blob.touched_at > old
