"""What the cache trusts, what it tells, and what comes from next door: real caches and servers."""

import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from espalier import tickets
from espalier.errors import InvalidInput, NotFound
from espalier.messages import FileEntry, Heartbeat, Source
from espalier.transfer import Transfer
from tests.integration.worker.fake_control import FakeControl
from worker.cache import BlobCache
from worker.holdings import Holdings
from worker.sharing import Sharing
from worker.siblings import Siblings

DATA = bytes(range(256)) * 1024


def silent(moved: int) -> None:
    del moved


@pytest.fixture
def cache(tmp_path: Path, transfer: Transfer) -> BlobCache:
    return BlobCache(tmp_path / "blobs", 1 << 30, transfer)


def drop(cache: BlobCache, entry: FileEntry, content: bytes, mode: int = 0o644) -> Path:
    """Put a file where the blob would be, as somebody else might."""
    path = cache.path(entry.sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


# --- Trust ----------------------------------------------------------------------------------


def test_what_was_fetched_is_read_only_and_not_hashed_again(
    cache: BlobCache, control: FakeControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = control.put(DATA, "x")
    cache.lay_out([entry], tmp_path / "a", silent)
    assert cache.path(entry.sha256).stat().st_mode & 0o777 == 0o444
    hashed: list[Path] = []
    monkeypatch.setattr("worker.cache.digest", hashed.append)
    cache.lay_out([entry], tmp_path / "b", silent)
    assert hashed == []
    assert len(control.downloads) == 1


def test_a_file_that_nothing_vouches_for_is_hashed_and_taken(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    entry = control.put(DATA, "x")
    path = drop(cache, entry, DATA)
    assert cache.holdings() == {}
    cache.lay_out([entry], tmp_path / "a", silent)
    assert control.downloads == []
    assert path.stat().st_mode & 0o777 == 0o444
    assert cache.holdings() == {entry.sha256: len(DATA)}


def test_one_of_the_right_size_and_other_bytes_is_fetched_again(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    entry = control.put(DATA, "x")
    drop(cache, entry, bytes(len(DATA)))  # what a power cut leaves: the size, and zeros
    cache.lay_out([entry], tmp_path / "a", silent)
    assert (tmp_path / "a" / "x").read_bytes() == DATA
    assert len(control.downloads) == 1


def test_a_whole_part_of_a_process_that_ended_is_verified_before_it_counts(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    good, bad = control.put(DATA, "good"), control.put(DATA + b"!", "bad")
    for entry, content in ((good, DATA), (bad, bytes(bad.size))):
        path = cache.path(entry.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{entry.sha256}.part")
        part.write_bytes(content)
        part.chmod(0o444)  # the process ended between its last two steps
    cache.lay_out([good, bad], tmp_path / "a", silent)
    assert (tmp_path / "a" / "good").read_bytes() == DATA
    assert (tmp_path / "a" / "bad").read_bytes() == DATA + b"!"
    assert [sha256 for sha256, _ in control.downloads] == [bad.sha256]


def test_a_download_is_on_the_disk_before_it_has_its_name(
    control: FakeControl, client: object, tmp_path: Path, transfer: Transfer
) -> None:
    entry = control.put(DATA, "x")
    seen: list[bool] = []
    target = tmp_path / "x"
    watched = Transfer(transfer._client, "/api/v1", sync=lambda fd: seen.append(target.exists()))
    watched.pull_file(entry, target)
    assert seen == [False]
    assert target.exists()


# --- What is told ---------------------------------------------------------------------------


def test_changes_are_told_until_they_are_heard(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    first, second = control.put(DATA, "a"), control.put(DATA * 2, "b")
    cache.lay_out([first], tmp_path / "a", silent)
    holdings, beat = Holdings(cache), Heartbeat(boot_id="b")
    assert holdings.whole() == {first.sha256: first.size}
    holdings.heard()
    assert not holdings.has_changed()

    cache.lay_out([second], tmp_path / "b", silent)
    for _ in range(2):  # the first was not answered
        assert holdings.has_changed()
        told = holdings.tell(beat)
        assert (told.added, told.removed, told.blobs) == ({second.sha256: second.size}, (), None)
    holdings.heard()
    assert not holdings.has_changed()

    cache.path(first.sha256).unlink()  # another worker of this machine threw it out
    assert holdings.has_changed()
    assert holdings.tell(beat).removed == (first.sha256,)
    assert holdings.tell(beat, whole=True).blobs == {second.sha256: second.size}


# --- Next door ------------------------------------------------------------------------------


@pytest.fixture
def neighbour(tmp_path: Path, transfer: Transfer) -> Iterator[tuple[BlobCache, Sharing]]:
    """Another worker's cache, and its server."""
    cache = BlobCache(tmp_path / "neighbour", 1 << 30, transfer)
    sharing = Sharing(cache, "127.0.0.1:0")
    sharing.start()
    yield cache, sharing
    sharing.close()


def source(sharing: Sharing, sha256: str, lasts: float = 60.0) -> Source:
    ticket = tickets.issue(sharing.key, sha256, int(time.time() + lasts))
    return Source(sha256=sha256, url=sharing.url, ticket=ticket, name="studio-2")


def test_a_blob_comes_from_next_door(
    cache: BlobCache,
    neighbour: tuple[BlobCache, Sharing],
    control: FakeControl,
    tmp_path: Path,
) -> None:
    theirs, sharing = neighbour
    entry = control.put(DATA, "x")
    theirs.lay_out([entry], tmp_path / "theirs", silent)
    control.downloads.clear()
    moved: list[int] = []
    siblings = Siblings([source(sharing, entry.sha256)])
    cache.lay_out([entry], tmp_path / "mine", moved.append, siblings)
    assert (tmp_path / "mine" / "x").read_bytes() == DATA
    assert control.downloads == []
    assert sum(moved) == len(DATA)
    assert cache.holdings() == {entry.sha256: len(DATA)}


def test_a_large_one_comes_in_ranges(
    cache: BlobCache,
    neighbour: tuple[BlobCache, Sharing],
    control: FakeControl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("espalier.transfer.SPAN", 1 << 16)
    theirs, sharing = neighbour
    entry = control.put(DATA, "x")
    theirs.lay_out([entry], tmp_path / "theirs", silent)
    control.downloads.clear()
    siblings = Siblings([source(sharing, entry.sha256)])
    cache.lay_out([entry], tmp_path / "mine", silent, siblings)
    assert (tmp_path / "mine" / "x").read_bytes() == DATA
    assert control.downloads == []


def test_wrong_bytes_from_next_door_are_dropped(
    cache: BlobCache,
    neighbour: tuple[BlobCache, Sharing],
    control: FakeControl,
    tmp_path: Path,
) -> None:
    theirs, sharing = neighbour
    entry = control.put(DATA, "x")
    drop(theirs, entry, bytes(len(DATA)), 0o444)  # its disk went bad since it was verified
    moved: list[int] = []
    siblings = Siblings([source(sharing, entry.sha256)])
    cache.lay_out([entry], tmp_path / "mine", moved.append, siblings)
    assert (tmp_path / "mine" / "x").read_bytes() == DATA
    assert len(control.downloads) == 1
    assert sum(moved) == len(DATA)


def test_a_neighbour_that_is_away_or_has_lost_it_costs_nothing(
    cache: BlobCache,
    neighbour: tuple[BlobCache, Sharing],
    control: FakeControl,
    tmp_path: Path,
) -> None:
    _, sharing = neighbour
    entry = control.put(DATA, "x")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    away = source(sharing, entry.sha256).model_copy(update={"url": f"http://127.0.0.1:{port}"})
    siblings = Siblings([away, source(sharing, entry.sha256)])
    cache.lay_out([entry], tmp_path / "mine", silent, siblings)
    assert (tmp_path / "mine" / "x").read_bytes() == DATA
    assert len(control.downloads) == 1


def test_one_that_breaks_off_has_its_rest_from_the_control_plane(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    entry = control.put(DATA, "x")

    def half(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n"
            connection.sendall(head.encode() + DATA[: len(DATA) // 2])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=half, args=(listening,))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        siblings = Siblings([Source(sha256=entry.sha256, url=url, ticket="1.x", name="studio-2")])
        moved: list[int] = []
        cache.lay_out([entry], tmp_path / "mine", moved.append, siblings)
        thread.join(60)
    assert (tmp_path / "mine" / "x").read_bytes() == DATA
    assert control.downloads == [
        (entry.sha256, f"bytes={len(DATA) // 2}-{len(DATA) - 1}"),
    ]
    assert sum(moved) == len(DATA)


def test_one_that_crawls_is_given_up(
    cache: BlobCache,
    neighbour: tuple[BlobCache, Sharing],
    control: FakeControl,
    tmp_path: Path,
) -> None:
    theirs, sharing = neighbour
    entry = control.put(DATA, "x")
    theirs.lay_out([entry], tmp_path / "theirs", silent)
    control.downloads.clear()
    minutes = iter(range(0, 10**6, 60))  # a clock by which every piece takes a minute
    siblings = Siblings([source(sharing, entry.sha256)], lambda: float(next(minutes)))
    moved: list[int] = []
    cache.lay_out([entry], tmp_path / "mine", moved.append, siblings)
    assert (tmp_path / "mine" / "x").read_bytes() == DATA
    assert len(control.downloads) == 1
    assert sum(moved) == len(DATA)


def test_what_the_control_plane_lacks_too_is_not_found(
    cache: BlobCache, neighbour: tuple[BlobCache, Sharing], tmp_path: Path
) -> None:
    entry = FileEntry(path="x", sha256="0" * 64, size=5)
    siblings = Siblings([source(neighbour[1], entry.sha256)])
    with pytest.raises(NotFound):
        cache.lay_out([entry], tmp_path / "mine", silent, siblings)


def ask(sharing: Sharing, path: str, ticket: str | None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(sharing.url.removeprefix("http://"), timeout=60)
    given = {"Authorization": f"Bearer {ticket}"} if ticket else {}
    connection.request("GET", path, headers=given | headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_only_a_ticket_for_that_blob_opens_the_door(
    neighbour: tuple[BlobCache, Sharing], control: FakeControl, tmp_path: Path
) -> None:
    cache, sharing = neighbour
    entry, other = control.put(DATA, "x"), control.put(b"other", "y")
    cache.lay_out([entry, other], tmp_path / "theirs", silent)
    path = f"/blobs/{entry.sha256}"
    good = source(sharing, entry.sha256).ticket
    expires = good.partition(".")[0]
    assert ask(sharing, path, good) == (200, DATA)
    for ticket in (
        None,
        "",
        "x",
        "1.é",
        source(sharing, entry.sha256, lasts=-5.0).ticket,
        source(sharing, other.sha256).ticket,
        tickets.issue("another key", entry.sha256, int(expires)),
        f"{int(expires) + 1}.{good.partition('.')[2]}",
        f"{expires}.",
    ):
        assert ask(sharing, path, ticket)[0] == 401, ticket


def test_no_path_leads_out_of_the_cache(
    neighbour: tuple[BlobCache, Sharing], control: FakeControl, tmp_path: Path
) -> None:
    cache, sharing = neighbour
    entry = control.put(DATA, "x")
    untrusted = FileEntry(path="u", sha256=hashlib.sha256(b"u").hexdigest(), size=1)
    cache.lay_out([entry], tmp_path / "theirs", silent)
    drop(cache, untrusted, b"u")
    ticket = source(sharing, entry.sha256).ticket
    for path in (
        "/blobs/../secret",
        f"/blobs/{entry.sha256}/../../secret",
        f"/blobs/%2e%2e/{entry.sha256}",
        f"/blobs/{entry.sha256.upper()}",
        f"/blobs/{entry.sha256}%0a",
        "/",
    ):
        assert ask(sharing, path, ticket)[0] == 404, path
    given = source(sharing, untrusted.sha256).ticket
    assert ask(sharing, f"/blobs/{untrusted.sha256}", given)[0] == 404


def test_ranges(neighbour: tuple[BlobCache, Sharing], control: FakeControl, tmp_path: Path) -> None:
    cache, sharing = neighbour
    entry = control.put(DATA, "x")
    cache.lay_out([entry], tmp_path / "theirs", silent)
    path, ticket = f"/blobs/{entry.sha256}", source(sharing, entry.sha256).ticket
    assert ask(sharing, path, ticket, Range="bytes=5-9") == (206, DATA[5:10])
    assert ask(sharing, path, ticket, Range="bytes=100-") == (206, DATA[100:])
    assert ask(sharing, path, ticket, Range=f"bytes=0-{10**17}") == (206, DATA)
    assert ask(sharing, path, ticket, Range=f"bytes={len(DATA)}-")[0] == 416
    assert ask(sharing, path, ticket, Range="bytes=9-5")[0] == 416


@pytest.mark.parametrize("address", ["", "studio", "studio:", ":80", "h:99999", "0.0.0.0:80"])
def test_an_address_that_nobody_could_call_is_refused(cache: BlobCache, address: str) -> None:
    with pytest.raises(InvalidInput, match="share_blobs"):
        Sharing(cache, address)
