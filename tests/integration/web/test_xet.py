"""Uploads by Xet as requests: who may, what is believed, and what stays."""

import hashlib
import io
import struct
from datetime import timedelta

import lz4.frame
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from scheduler.bytes import gc
from scheduler.bytes.xet import KEPT
from scheduler.bytes.xetformat import read_xorb
from scheduler.db import now
from scheduler.models import Blob, Project, Token, Upload, XetXorb
from tests.integration.web.site import MODEL, Door, Site

PIECES = [b"one" * 500, b"two" * 700, b"three" * 300]
DATA = b"".join(PIECES)
TOKEN = "/api/models/team/base/xet-write-token/main"


def xorb(pieces: list[bytes] = PIECES) -> tuple[str, bytes]:
    """A xorb of these chunks, packed, and its name."""
    body = b""
    for piece in pieces:
        packed = lz4.frame.compress(piece)
        sizes = len(packed).to_bytes(3, "little") + b"\x01" + len(piece).to_bytes(3, "little")
        body += b"\x00" + sizes + packed
    return read_xorb(io.BytesIO(body)).hash, body


def raw(name: str) -> bytes:
    return struct.pack("<4Q", *(int(name[at : at + 16], 16) for at in range(0, 64, 16)))


def shard(sha256: str, *terms: tuple[str, int, int, int]) -> bytes:
    """A shard that says how one file is made: (xorb, bytes, first chunk, chunk behind)."""
    file = struct.pack("<32sIIQ", b"f" * 32, 1 << 30, len(terms), 0)
    for name, size, start, stop in terms:
        file += struct.pack("<32sIIII", raw(name), 0, size, start, stop)
    header = b"HFRepoMetaData\x00" + bytes(17) + struct.pack("<QQ", 2, 0)
    return header + file + raw(sha256) + bytes(16) + b"\xff" * 32 + bytes(16)


class Sender:
    """A client that has its token."""

    def __init__(self, door: Door, path: str = TOKEN) -> None:
        told = door.send("GET", path)
        assert told.status_code == 200, told.json
        assert told.json["accessToken"] == told.headers["X-Xet-Access-Token"]
        assert told.json["casUrl"] == told.headers["X-Xet-Cas-Url"]
        self.door, self.token = door, told.json["accessToken"]
        self.store = told.json["casUrl"].removeprefix("http://localhost")

    def post(self, path: str, body: bytes, token: str | None = None) -> TestResponse:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return self.door.http.post(self.store + path, data=body, headers=headers)

    def send(self, pieces: list[bytes] = PIECES) -> str:
        name, body = xorb(pieces)
        assert self.post(f"/v1/xorbs/default/{name}", body).status_code == 200
        return name


def kept(site: Site, data: bytes) -> bytes:
    return b"".join(site.services.blobs.open(hashlib.sha256(data).hexdigest()))


def test_a_file_is_put_together_from_chunks(site: Site) -> None:
    sender = Sender(site.with_inputs().ada)
    name = sender.send()
    data = DATA + PIECES[1]
    terms = [(name, len(DATA), 0, 3), (name, len(PIECES[1]), 1, 2)]
    body = shard(hashlib.sha256(data).hexdigest(), *terms)
    assert sender.post("/v1/shards", body).json == {"result": 1}
    assert kept(site, data) == data
    assert sender.post("/v1/shards", body).status_code == 200, "again is no error"
    # In another process, later: xorbs are in the store, not in the server's memory.
    later = Sender(Door(site.app, site.ada.token))
    body = shard(hashlib.sha256(PIECES[2]).hexdigest(), (name, len(PIECES[2]), 2, 3))
    assert later.post("/v1/shards", body).status_code == 200
    assert kept(site, PIECES[2]) == PIECES[2]


def test_what_clients_probe_for_is_not_there(site: Site) -> None:
    sender = Sender(site.with_inputs().ada)
    name = sender.send()
    for path in (f"/v1/xorb-grants/default/{name}", "/v2/shards"):
        assert sender.post(path, b"").status_code == 404
    headers = {"Authorization": f"Bearer {sender.token}"}
    path = f"{sender.store}/v1/chunks/default/{name}"
    assert site.ada.http.get(path, headers=headers).status_code == 404


def test_lies_are_refused_and_nothing_stays(site: Site) -> None:
    sender = Sender(site.with_inputs().ada)
    name, body = xorb()
    other, _ = xorb([b"other"])
    for path, sent in ((other, body), (name, body[:-1]), (name, b""), ("x", body)):
        refused = sender.post(f"/v1/xorbs/default/{path}", sent)
        assert refused.status_code in (400, 422), refused.status
    with site.database.reading() as session:
        assert session.scalars(select(XetXorb)).all() == []
    name = sender.send()
    sha256 = hashlib.sha256(DATA).hexdigest()
    wrong = hashlib.sha256(b"wrong").hexdigest()
    for sent, words in (
        (shard(wrong, (name, len(DATA), 0, 3)), "have sha256"),
        (shard(sha256, (name, len(DATA) + 1, 0, 3)), "bytes"),
        (shard(sha256, (name, len(DATA), 0, 4)), "chunks"),
        (shard(sha256, (other, len(DATA), 0, 3)), "HF_HUB_DISABLE_XET"),
        (b"no shard at all", "early"),
    ):
        refused = sender.post("/v1/shards", sent)
        assert refused.status_code in (400, 422), refused.status
        assert words in refused.status, "clients show the status line alone"
    with site.database.reading() as session:
        assert session.get(Blob, sha256) is None


def test_a_token_is_one_person_s_for_one_project_and_ends_with_theirs(site: Site) -> None:
    site.with_inputs()
    site.eve.publish(site.directory / "e", "elsewhere/base", "model", MODEL)
    assert site.eve.send("GET", TOKEN).status_code == 404
    mine = Sender(site.ada)
    hers = Sender(site.eve, TOKEN.replace("team", "elsewhere"))
    name, body = xorb()
    path = f"/v1/xorbs/default/{name}"
    assert mine.post(path, body, token=hers.token).status_code == 404
    for token in (site.ada.token, mine.token[:-2], "x"):
        assert mine.post(path, body, token=token).status_code == 401
    for door, token in ((site.ada, mine.token), (site.eve, hers.token)):
        headers = {"Authorization": f"Bearer {token}"}
        assert door.http.get("/api/whoami-v2", headers=headers).status_code == 401
    with site.database.transaction() as session:
        session.execute(update(Token).values(revoked_at=now(session)))
    assert mine.post(path, body).status_code == 401


def test_nobody_has_a_file_of_another_project_s_chunks(site: Site) -> None:
    site.with_inputs()
    site.eve.publish(site.directory / "e", "elsewhere/base", "model", MODEL)
    name = Sender(site.ada).send()
    hers = Sender(site.eve, TOKEN.replace("team", "elsewhere"))
    body = shard(hashlib.sha256(DATA).hexdigest(), (name, len(DATA), 0, 3))
    unknown = hers.post("/v1/shards", body)
    assert unknown.status_code == 400
    absent = xorb([b"absent"])[0]
    never = hers.post("/v1/shards", body.replace(raw(name), raw(absent)))
    assert never.status == unknown.status.replace(name, absent), "the same as what nobody has"
    assert hers.send() == name, "who has the bytes can send them"
    assert hers.post("/v1/shards", body).status_code == 200


def test_xorbs_stay_while_clients_remember_them(site: Site) -> None:
    name = Sender(site.with_inputs().ada).send()
    blobs = site.services.blobs

    def age(by: timedelta) -> None:
        with site.database.transaction() as session:
            then = now(session) - by
            session.execute(update(Blob).values(touched_at=then))
            session.execute(update(Upload).values(touched_at=then))
            session.execute(update(XetXorb).values(touched_at=then))

    def is_there() -> bool:
        with site.database.reading() as session:
            team = session.scalars(select(Project.id).where(Project.name == "team")).one()
            row = session.get(XetXorb, (team, name))
            return row is not None and session.get(Blob, row.sha256) is not None

    age(timedelta(days=21))
    gc.collect(site.database, blobs)
    assert is_there()
    age(KEPT + timedelta(days=1))
    for _ in range(2):  # first the uploads and the xorbs, then the blobs that nothing names
        gc.collect(site.database, blobs)
    assert not is_there()
    with site.database.reading() as session:
        assert session.scalars(select(XetXorb)).all() == []
