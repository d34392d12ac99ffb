"""What S3 servers do beside the contract: odd ranges, cuts, restarts, refusals."""

import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from espalier.errors import InvalidInput, NotFound, Unavailable
from scheduler.bytes import gc
from scheduler.bytes.blobs import Blobs
from scheduler.db import Database
from scheduler.store import open_driver, s3
from scheduler.store.base import Part
from tests.integration.store.servers import SECRET_KEY, Server, moto_s3, rclone_s3

MIB = 1 << 20
DATA = hashlib.shake_128(b"noise").digest(11 * MIB)


@pytest.fixture(params=["rclone", "moto"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with rclone_s3(tmp_path) if request.param == "rclone" else moto_s3() as server:
        yield server


def test_the_probe_makes_the_bucket_and_says_what_is_missing(server: Server) -> None:
    driver = open_driver(server.settings())
    assert driver.limits() == ()
    limits = driver.probe()
    assert driver.limits() == limits == open_driver(server.settings()).probe()
    is_rclone = server.bucket == "models"
    assert any(limit.startswith("answers a Range with status 200") for limit in limits) is is_rclone
    assert any("conditional writes" in limit for limit in limits) is is_rclone
    assert any("x-amz-checksum-sha256" in limit for limit in limits), "both believe the client"
    assert list(driver.list("")) == []
    assert list(driver.uploads()) == []


def test_encryption_is_asked_for_by_all_that_writes() -> None:
    with moto_s3() as server:
        settings = server.settings(s3_encryption="aws:kms:a-key")
        driver = s3.connect(settings, server.bucket, "", copy_limit=5 * MIB)
        driver.probe()
        driver.put("staging/small", b"abc")
        driver.move("staging/small", "blobs/small")
        handle = driver.begin("staging/large")
        tag = driver.put_part("staging/large", handle, Part(1, 0, 11 * MIB), io.BytesIO(DATA))
        driver.assemble("staging/large", handle, [Part(1, 0, 11 * MIB, tag)])
        told = driver.client.head_object(**driver.at("staging/large"))
        assert told["ServerSideEncryption"] == "aws:kms"
        driver.move("staging/large", "blobs/large")
        for key in ("blobs/small", "blobs/large"):
            told = driver.client.head_object(**driver.at(key))
            assert (told["ServerSideEncryption"], told["SSEKMSKeyId"]) == ("aws:kms", "a-key")


def test_a_server_that_says_nothing_of_encryption_is_not_used() -> None:
    with moto_s3() as server:
        driver = s3.connect(server.settings(s3_encryption="AES256"), server.bucket, "")
        driver.encryption["ServerSideEncryption"] = "aws:kms"
        written = driver.client.put_object

        def plain(**given: object) -> object:  # as servers do that know no encryption
            given.pop("ServerSideEncryption")
            return written(**given)  # type: ignore[arg-type]

        driver.client.put_object = plain  # type: ignore[method-assign,assignment]
        with pytest.raises(Unavailable, match="ESPALIER_S3_ENCRYPTION is aws:kms"):
            driver.probe()


@pytest.mark.parametrize("text", ["yes", "AES256:key", "aws:kms:", ""])
def test_an_encryption_that_is_none(text: str) -> None:
    with pytest.raises(InvalidInput, match="AES256, aws:kms or aws:kms:KEY-ID"):
        open_driver(Server("http://127.0.0.1:1", "models").settings(s3_encryption=text))


@pytest.mark.parametrize(("path_style", "host"), [(True, "s3.test"), (False, "models.s3.test")])
def test_the_bucket_is_in_the_path_or_in_the_host_s_name(path_style: bool, host: str) -> None:
    settings = Server("http://s3.test", "models").settings(s3_path_style=path_style)
    driver = s3.connect(settings, "models", "prefix")
    assert urlsplit(driver.presign("blobs/x")).hostname == host


def test_no_link_is_given_while_the_server_is_away() -> None:
    settings = Server("http://127.0.0.1:1", "models").settings(s3_presigned=True)
    assert open_driver(settings).link("blobs/x") is None


def test_a_large_object_is_copied_in_parts(server: Server) -> None:
    driver = s3.connect(server.settings(), server.bucket, "", copy_limit=5 * MIB)
    driver.probe()
    driver.put("staging/large", DATA)
    driver.move("staging/large", "blobs/large")
    assert b"".join(driver.open("blobs/large")) == DATA
    assert [stored.key for stored in driver.list("")] == ["blobs/large"]


def test_prefixes_keep_apart(server: Server) -> None:
    one, two = (s3.connect(server.settings(), server.bucket, name) for name in ("a", "/b/c/"))
    one.probe()
    one.put("staging/x", b"1")
    assert two.size("staging/x") is None
    assert list(two.list("staging/")) == []


def test_a_wrong_secret_is_named_and_never_shown(tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as server:
        wrong = server.settings(s3_secret_key=SecretStr("not-the-secret"))
        with pytest.raises(Unavailable) as refused:
            open_driver(wrong).probe()
    assert server.endpoint in refused.value.detail
    assert "bucket models" in refused.value.detail
    assert "ESPALIER_S3_SECRET_KEY" in (refused.value.hint or "")
    shown = f"{refused.value.problem()}"
    assert "not-the-secret" not in shown
    assert SECRET_KEY not in shown


def test_a_server_that_is_away_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"{endpoint}, bucket models"):
            open_driver(Server(endpoint, "models").settings()).probe()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_uploads_begin_again_when_a_restart_lost_them(database: Database, tmp_path: Path) -> None:
    sha256, half = hashlib.sha256(DATA).hexdigest(), 6 * MIB

    def begin(blobs: Blobs) -> str:
        with database.transaction() as session:
            opened = blobs.open_upload(session, "user:a", sha256, len(DATA))
        assert opened.upload_id
        assert opened.parts == ()
        return opened.upload_id

    def send(blobs: Blobs, upload_id: str, number: int) -> None:
        start = (number - 1) * half
        body = io.BytesIO(DATA[start : start + half])
        blobs.put_part(database, upload_id, "user:a", number, body)

    with rclone_s3(tmp_path / "s3") as server:
        blobs = _blobs(server, half)
        first = begin(blobs)
        send(blobs, first, 1)
    with rclone_s3(tmp_path / "s3") as server:
        blobs = _blobs(server, half)
        with pytest.raises(NotFound, match=first):
            send(blobs, first, 2)
        second = begin(blobs)
        send(blobs, second, 1)
        send(blobs, second, 2)
        blobs.complete(database, second, "user:a")
        assert b"".join(blobs.open(sha256)) == DATA
        assert list(blobs.driver.list("staging/")) == []


def _blobs(server: Server, part_bytes: int) -> Blobs:
    settings = server.settings(part_bytes=part_bytes)
    driver = open_driver(settings)
    driver.probe()
    return Blobs(driver, settings)


class _Unwilling(BaseHTTPRequestHandler):
    """Ignores Range, says so by 200, and hangs up in the middle of the first answers."""

    cuts: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA[: self.cuts.pop() if self.cuts else None])

    def log_message(self, *args: object) -> None: ...


@contextmanager
def _unwilling(*cuts: int) -> Iterator[Server]:
    handler = type("Handler", (_Unwilling,), {"cuts": list(cuts)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Server(f"http://127.0.0.1:{server.server_address[1]}", "models")
        server.shutdown()
        thread.join()


def test_a_download_goes_on_after_a_cut() -> None:
    with _unwilling(9 * MIB, 5 * MIB) as server:
        driver = open_driver(server.settings())
        assert b"".join(driver.open("blobs/x")) == DATA


def test_a_range_that_was_ignored_is_taken_from_the_whole() -> None:
    with _unwilling(5 * MIB) as server:
        driver = open_driver(server.settings())
        assert (
            b"".join(driver.open("blobs/x", 3 * MIB + 1, 4 * MIB)) == DATA[3 * MIB + 1 :][: 4 * MIB]
        )


def test_a_download_that_is_always_cut_ends_in_an_error() -> None:
    with _unwilling(*[MIB] * 9) as server:
        driver = open_driver(server.settings())
        with pytest.raises(Unavailable, match="of 11534336 bytes"):
            b"".join(driver.open("blobs/x"))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_uploads_that_no_row_knows_are_aborted(database: Database) -> None:
    with moto_s3() as server:
        blobs = _blobs(server, 5 * MIB)
        blobs.driver.begin("staging/nobody")
        blobs.driver.put("staging/nothing", b"left over")
        with database.transaction() as session:
            mine = blobs.open_upload(session, "user:a", "0" * 64, 3).upload_id
        blobs.put_part(database, str(mine), "user:a", 1, io.BytesIO(b"abc"))
        gc.collect(database, blobs, timedelta(days=1))  # moto dates every upload 2010: one goes
        assert len(list(blobs.driver.uploads())) == 1
        left = gc.collect(database, blobs, -timedelta(hours=1), dry_run=True)
        assert (left.uploads, left.orphans) == (1, 1)
        gc.collect(database, blobs, -timedelta(hours=1))
        assert list(blobs.driver.uploads()) == []
        assert list(blobs.driver.list("")) == []
