"""Uploads hashed while they arrive: what counts is what the store has at the end."""

import hashlib
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from espalier.errors import InvalidInput
from espalier.settings import Settings
from scheduler.bytes.arriving import Arriving
from scheduler.bytes.blobs import Blobs
from scheduler.db import Database
from scheduler.store.base import CHUNK, Part, staging_key
from scheduler.store.directory import Directory

MIB = 1 << 20
SIZE = 3 * MIB
NOISE = random.Random(5).randbytes(SIZE)


class Watched(Directory):
    """A directory store that notes how much of an assembled upload is read back."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read_back = 0

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        for chunk in super().open(key, start, length):
            self.read_back += len(chunk)
            yield chunk


@pytest.fixture
def driver(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "store")


def begin(driver: Directory) -> str:
    return driver.begin(staging_key("one"))


def put(driver: Directory, handle: str, number: int, data: bytes) -> Part:
    part = Part(number, (number - 1) * MIB, len(data))
    tag = driver.put_part(staging_key("one"), handle, part, io.BytesIO(data))
    return Part(part.number, part.start, part.size, tag)


def pieces(data: bytes = NOISE) -> list[bytes]:
    return [data[start : start + MIB] for start in range(0, len(data), MIB)]


def sent(driver: Directory, arriving: Arriving, handle: str, order: Sequence[int]) -> list[Part]:
    parts = {}
    for number in order:
        parts[number] = put(driver, handle, number, pieces()[number - 1])
        arriving.received("one", SIZE, handle, parts[number])
    return [parts[number] for number in sorted(parts)]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_what_was_hashed_on_the_way_is_not_read_again(
    driver: Watched, order: tuple[int, ...]
) -> None:
    arriving, handle = Arriving(driver), begin(driver)
    parts = sent(driver, arriving, handle, order)
    found = arriving.assemble("one", SIZE, handle, parts)
    assert found.sha256 == hashlib.sha256(NOISE).hexdigest()
    assert (found.size, driver.read_back) == (SIZE, 0)


def test_a_part_overwritten_by_a_put_that_never_ended_is_read_back(driver: Watched) -> None:
    """Another process of the same owner: this one hears nothing of it."""
    arriving, handle = Arriving(driver), begin(driver)
    parts = sent(driver, arriving, handle, (1, 2, 3))
    with pytest.raises(InvalidInput):
        put_short(driver, handle, parts[1])
    found = arriving.assemble("one", SIZE, handle, parts)
    assert found.sha256 != hashlib.sha256(NOISE).hexdigest()
    assert driver.read_back == SIZE


def put_short(driver: Directory, handle: str, part: Part) -> None:
    """Begin to put other bytes into a part, and break off after some of them."""
    wanted = Part(part.number, part.start, part.size)
    driver.put_part(staging_key("one"), handle, wanted, io.BytesIO(bytes(part.size // 2)))


def test_a_part_put_again_counts_as_it_is_now(driver: Watched) -> None:
    arriving, handle = Arriving(driver), begin(driver)
    parts = sent(driver, arriving, handle, (1, 2, 3))
    parts[0] = put(driver, handle, 1, bytes(MIB))
    arriving.received("one", SIZE, handle, parts[0])
    found = arriving.assemble("one", SIZE, handle, parts)
    assert found.sha256 == hashlib.sha256(bytes(MIB) + NOISE[MIB:]).hexdigest()


def test_another_process_reads_all_of_it_back(driver: Watched) -> None:
    handle = begin(driver)
    parts = sent(driver, Arriving(driver), handle, (1, 2, 3))
    found = Arriving(driver).assemble("one", SIZE, handle, parts)
    assert found.sha256 == hashlib.sha256(NOISE).hexdigest()
    assert driver.read_back == SIZE


def test_nothing_is_left_beside_an_assembled_upload(driver: Watched) -> None:
    arriving, handle = Arriving(driver), begin(driver)
    parts = sent(driver, arriving, handle, (1, 2, 3))
    listed = [stored.key for stored in driver.list("staging/")]
    assert listed == [f"staging/one.{handle}"], "claims are not shown while they are in use"
    arriving.assemble("one", SIZE, handle, parts)
    assert [p.name for p in (driver.root / "staging").iterdir()] == ["one"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_whole_upload_goes_this_way(database: Database, tmp_path: Path) -> None:
    settings = Settings(part_bytes=5 * MIB)
    driver = Watched(tmp_path / "store")
    blobs, data = Blobs(driver, settings), random.Random(6).randbytes(11 * MIB + CHUNK // 2)
    sha256 = hashlib.sha256(data).hexdigest()
    with database.transaction() as session:
        upload_id = blobs.open_upload(session, "user:a", sha256, len(data)).upload_id
    assert upload_id
    for number, start in enumerate(range(0, len(data), 5 * MIB), 1):
        piece = io.BytesIO(data[start : start + 5 * MIB])
        blobs.put_part(database, upload_id, "user:a", number, piece)
    blobs.complete(database, upload_id, "user:a")
    assert driver.read_back == 0, "nothing of it was read twice"
    assert b"".join(blobs.open(sha256)) == data
