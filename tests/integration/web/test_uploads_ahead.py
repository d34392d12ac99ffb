"""Large files that go up before anybody knows their sha256."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier import sending, transfer
from espalier.messages import FileEntry
from scheduler.store.base import blob_key
from tests.integration.web.site import Site

MIB = 1 << 20
SIZE = 11 * MIB  # three parts
WEIGHTS = "weights.dat"


@pytest.fixture(autouse=True)
def _all_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "AHEAD", MIB)


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(database_url, tmp_path / "site", None, part_bytes=5 * MIB)
    yield site
    site.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / WEIGHTS).write_bytes(random.Random(1).randbytes(SIZE))
    (tmp_path / "up" / "small.json").write_bytes(b"{}")
    return tmp_path / "up"


def entry(folder: Path) -> FileEntry:
    sha256, size = sending.digest(folder / WEIGHTS)
    return FileEntry(path=WEIGHTS, sha256=sha256, size=size)


def begun(site: Site, path: str, question: dict[str, object]) -> dict[str, Any]:
    answer: dict[str, Any] = site.ada.post(path, question).get_json()
    return answer


def stored(site: Site, one: FileEntry) -> bytes:
    return b"".join(site.services.blobs.open(one.sha256))


def left(site: Site) -> list[str]:
    return [one.key for one in site.services.blobs.driver.list("staging/")]


def test_it_is_hashed_on_its_way_and_known_by_its_sha256(site: Site, folder: Path) -> None:
    new = site.ada.transfer.new_to_it(folder)
    assert new.keys() == {WEIGHTS}, "what is small is hashed first"
    moved: list[int] = []
    (sent,) = site.ada.transfer.send(folder, new, moved.append)
    assert sent == entry(folder)
    assert sum(moved) == SIZE
    assert stored(site, sent) == (folder / WEIGHTS).read_bytes()
    assert left(site) == []
    assert site.ada.transfer.missing([sent]) == set()
    assert site.ada.transfer.new_to_it(folder) == {}, "she has a file of that size"


def test_parts_that_have_arrived_are_not_sent_by_another_process(site: Site, folder: Path) -> None:
    (outline, size) = site.ada.transfer.new_to_it(folder)[WEIGHTS]
    one = begun(site, "/uploads/ahead", {"outline": outline, "size": size})
    data = (folder / WEIGHTS).read_bytes()
    first = f"/uploads/{one['upload_id']}/parts/1"
    assert site.ada.send("PUT", first, data=data[: 5 * MIB]).status_code == 204
    # Meanwhile something of that size has come: what was begun is gone on with all the same.
    other = random.Random(2).randbytes(SIZE)
    site.ada.upload(site.directory / "other", {WEIGHTS: other})
    sends: list[str] = []
    send = site.ada.client.send

    def noting(method: str, path: str, **options: object) -> object:
        sends.append(f"{method} {path.rsplit('/', 1)[-1]}")
        return send(method, path, **options)  # type: ignore[arg-type]

    site.ada.client.send = noting  # type: ignore[method-assign, assignment]
    (sent,) = site.ada.transfer.send(folder, site.ada.transfer.new_to_it(folder))
    assert sorted(s for s in sends if s.startswith("PUT")) == ["PUT 2", "PUT 3"]
    assert stored(site, sent) == data
    assert left(site) == []


def test_of_strangers_files_it_tells_nothing(site: Site, folder: Path) -> None:
    site.eve.upload(site.directory / "eve", {WEIGHTS: random.Random(3).randbytes(SIZE)})
    assert site.ada.transfer.new_to_it(folder).keys() == {WEIGHTS}
    assert site.eve.transfer.new_to_it(folder) == {}


def test_other_bytes_under_the_same_outline_are_found_out(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "outline", lambda path: ("0" * 64, path.stat().st_size))
    one = begun(site, "/uploads/ahead", {"outline": "0" * 64, "size": SIZE})
    old = bytes(5 * MIB)
    first = f"/uploads/{one['upload_id']}/parts/1"
    assert site.ada.send("PUT", first, data=old).status_code == 204
    moved: list[int] = []
    new = site.ada.transfer.new_to_it(folder)
    assert site.ada.transfer.send(folder, new, moved.append) == ()
    assert sum(moved) == 0, "none of it is there"
    assert left(site) == []
    site.ada.transfer.push(folder, [entry(folder)])
    assert stored(site, entry(folder)) == (folder / WEIGHTS).read_bytes()


def test_another_sha256_than_that_of_the_bytes_is_refused(site: Site, folder: Path) -> None:
    (outline, size) = site.ada.transfer.new_to_it(folder)[WEIGHTS]
    one = begun(site, "/uploads/ahead", {"outline": outline, "size": size})
    data = (folder / WEIGHTS).read_bytes()
    for number in (1, 2, 3):
        part = data[(number - 1) * 5 * MIB : number * 5 * MIB]
        answer = site.ada.send("PUT", f"/uploads/{one['upload_id']}/parts/{number}", data=part)
        assert answer.status_code == 204
    lie = hashlib.sha256(b"something else").hexdigest()
    answer = site.ada.post(f"/uploads/{one['upload_id']}/complete", {"sha256": lie})
    assert answer.status_code == 422
    assert site.services.blobs.driver.size(blob_key(lie)) is None
    assert left(site) == []


def test_the_same_file_begun_by_its_sha256_elsewhere_is_one(site: Site, folder: Path) -> None:
    known = entry(folder)
    elsewhere = begun(site, "/uploads", {"sha256": known.sha256, "size": SIZE})
    data = (folder / WEIGHTS).read_bytes()
    first = f"/uploads/{elsewhere['upload_id']}/parts/1"
    assert site.ada.send("PUT", first, data=data[: 5 * MIB]).status_code == 204
    (sent,) = site.ada.transfer.send(folder, site.ada.transfer.new_to_it(folder))
    assert sent == known
    assert left(site) == []
    again = begun(site, "/uploads", {"sha256": known.sha256, "size": SIZE})
    assert again["upload_id"] is None
