"""What every store must do, asked of a directory, of rclone's S3 and of moto's."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from espalier.errors import InvalidInput, NotFound, Unavailable
from espalier.ids import new_id
from espalier.settings import Settings
from scheduler.store import Driver, open_driver
from scheduler.store.base import Part, UploadLost, blob_key, staging_key
from tests.integration.store.servers import moto_s3, rclone_s3

MIB = 1 << 20
STORES = ["directory", "rclone", "moto"]


@pytest.fixture(scope="module", params=STORES)
def settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    root = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        if request.param == "rclone":
            yield stack.enter_context(rclone_s3(root)).settings(s3_presigned=True)
        elif request.param == "moto":
            yield stack.enter_context(moto_s3()).settings(s3_presigned=True)
        else:
            yield Settings(store_url=f"file://{root / 'store'}")


@pytest.fixture(scope="module")
def driver(settings: Settings) -> Driver:
    driver = open_driver(settings)
    driver.probe()
    return driver


@pytest.fixture
def key() -> str:
    return staging_key(new_id())


def noise(size: int) -> bytes:
    return hashlib.shake_128(b"noise").digest(size)


def read(driver: Driver, key: str, start: int = 0, length: int | None = None) -> bytes:
    return b"".join(driver.open(key, start, length))


def blob() -> str:
    return blob_key(hashlib.sha256(new_id().encode()).hexdigest())


def put_parts(
    driver: Driver, key: str, data: bytes, order: tuple[int, ...] = (1, 2)
) -> tuple[str, list[Part]]:
    handle = driver.begin(key)
    size = 5 * MIB
    plan = {
        number: Part(number, start, len(data[start : start + size]))
        for number, start in enumerate(range(0, len(data), size), 1)
    }
    parts = {}
    for number in order:
        part = plan[number]
        body = io.BytesIO(data[part.start : part.start + part.size])
        tag = driver.put_part(key, handle, part, body)
        parts[number] = Part(number, part.start, part.size, tag)
    return handle, [parts[number] for number in sorted(parts)]


def test_a_small_object_comes_back(driver: Driver, key: str) -> None:
    driver.put(key, b"once")
    driver.put(key, b"and again")
    assert read(driver, key) == b"and again"
    assert driver.size(key) == 9


def test_an_empty_object(driver: Driver, key: str) -> None:
    driver.put(key, b"")
    assert driver.size(key) == 0
    assert read(driver, key) == b""
    assert read(driver, key, 0, 5) == b""


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, None), (0, 10), (3, 4), (999_990, 100), (1, None), (1_000_000, None), (5, 0), (0, 10**7)],
)
def test_any_range(driver: Driver, start: int, length: int | None) -> None:
    data, key = noise(1_000_000), staging_key("ranges")
    if driver.size(key) is None:
        driver.put(key, data)
    end = None if length is None else start + length
    assert read(driver, key, start, length) == data[start:end]


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_parts_become_one_object(driver: Driver, key: str, order: tuple[int, ...]) -> None:
    data = noise(5 * MIB + 7)
    handle, parts = put_parts(driver, key, data, order)
    assert driver.size(key) is None
    driver.assemble(key, handle, parts)
    driver.assemble(key, handle, parts)
    assert read(driver, key) == data


def test_a_part_may_be_sent_again(driver: Driver, key: str) -> None:
    data = noise(5 * MIB + 7)
    handle, parts = put_parts(driver, key, data)
    tag = driver.put_part(key, handle, parts[0], io.BytesIO(data[: 5 * MIB]))
    driver.assemble(key, handle, [Part(1, 0, 5 * MIB, tag), parts[1]])
    assert read(driver, key) == data


def test_another_part_replaces_the_first_or_the_upload_is_lost(driver: Driver, key: str) -> None:
    data = noise(5 * MIB + 7)
    handle, parts = put_parts(driver, key, bytes(5 * MIB) + data[5 * MIB :])
    try:
        tag = driver.put_part(key, handle, parts[0], io.BytesIO(data[: 5 * MIB]))
    except UploadLost:
        driver.abort(key, handle)
    else:
        driver.assemble(key, handle, [Part(1, 0, 5 * MIB, tag), parts[1]])
        assert read(driver, key) == data


def test_another_process_goes_on_with_an_upload(
    driver: Driver, settings: Settings, key: str
) -> None:
    data = noise(5 * MIB + 7)
    handle, parts = put_parts(driver, key, data, (1,))
    other = open_driver(settings)
    tag = other.put_part(key, handle, Part(2, 5 * MIB, 7), io.BytesIO(data[5 * MIB :]))
    other.assemble(key, handle, [*parts, Part(2, 5 * MIB, 7, tag)])
    assert read(driver, key) == data


@pytest.mark.parametrize("size", [99, 101])
def test_a_part_of_another_length_is_refused(driver: Driver, key: str, size: int) -> None:
    handle = driver.begin(key)
    with pytest.raises(InvalidInput, match="100"):
        driver.put_part(key, handle, Part(1, 0, 100), io.BytesIO(noise(size)))
    driver.abort(key, handle)


def test_an_upload_given_up_is_lost(driver: Driver, key: str) -> None:
    handle, parts = put_parts(driver, key, noise(5 * MIB + 7))
    driver.abort(key, handle)
    driver.abort(key, handle)
    lost = (UploadLost, Unavailable)  # moto's server breaks over an unknown upload: 500
    with pytest.raises(lost):
        driver.put_part(key, handle, parts[1], io.BytesIO(noise(7)))
    with pytest.raises(lost):
        driver.assemble(key, handle, parts)
    assert list(driver.list(key)) == []


def test_a_move_is_whole_and_may_be_repeated(driver: Driver, key: str) -> None:
    target = blob()
    for data in (b"bytes", b"bytes"):
        driver.put(key, data)
        driver.move(key, target)
        assert read(driver, target) == data
        assert driver.size(key) is None
    with pytest.raises(NotFound):
        driver.move(key, target)
    assert read(driver, target) == b"bytes"


def test_what_is_not_there(driver: Driver, key: str) -> None:
    assert driver.size(key) is None
    driver.delete(key)
    with pytest.raises(NotFound):
        driver.open(key)
    with pytest.raises(NotFound):
        driver.open(key, 5, 5)


def test_a_listing_names_what_is_there(driver: Driver) -> None:
    mark = new_id()
    keys = {staging_key(f"{mark}-{n}") for n in range(3)}
    for key in keys:
        driver.put(key, b"abc")
    driver.put(blob(), b"elsewhere")
    found = [stored for stored in driver.list("staging/") if mark in stored.key]
    assert {(stored.key, stored.size) for stored in found} == {(key, 3) for key in keys}
    assert all(stored.modified.tzinfo for stored in found)
    driver.delete(found[0].key)
    assert len([s for s in driver.list("staging/") if mark in s.key]) == 2
    assert list(driver.list("nothing/")) == []


def test_open_uploads_can_be_found(driver: Driver, key: str) -> None:
    handle, _ = put_parts(driver, key, noise(5 * MIB + 7))
    listed = [stored.key for stored in driver.list("staging/") if stored.key.startswith(key)]
    begun = [(parts.key, parts.handle) for parts in driver.uploads()]
    assert (key, handle) in begun or listed
    driver.abort(key, handle)


def test_a_link_gives_ranges_or_there_is_none(
    driver: Driver, settings: Settings, key: str, request: pytest.FixtureRequest
) -> None:
    driver.put(key, noise(1000))
    url = driver.link(key, "modèle 1.safetensors")
    if url is None:
        assert "moto" not in request.node.name, "its probe has nothing against it"
        assert not settings.s3_presigned or any("PRESIGNED" in text for text in driver.limits())
        return
    answer = httpx.get(url, headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, noise(1000)[10:20])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "mod%C3%A8le%201.safetensors" in answer.headers["content-disposition"]


def test_how_much_room_there_is(driver: Driver) -> None:
    room = driver.room()
    assert room is None or room > 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    driver = open_driver(Settings(store_url=f"file://{tmp_path}/store"))
    with pytest.raises(Unavailable, match=f"{tmp_path}/store"):
        driver.probe()


@pytest.mark.parametrize("url", ["file://host/x", "ftp://x/y", "s3://", "store", "file:x"])
def test_a_store_url_that_is_none(url: str) -> None:
    with pytest.raises(InvalidInput, match="file:///folder or s3://bucket/prefix"):
        open_driver(Settings(store_url=url))
