"""What the hub does not take, each with a code and a sentence, and nothing of it stored."""

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError
from itsdangerous import TimestampSigner
from sqlalchemy import select
from werkzeug.serving import make_server

from scheduler.models import Blob, Project, Version
from tests.integration.web.hubs import Hub
from tests.integration.web.site import Site, safetensors
from web.hub import lfs

PART = 5 << 20


@pytest.fixture
def hub(database_url: str, tmp_path: Path, broker_url: str) -> Iterator[Hub]:
    """A server with ``team/x`` in it, on each database."""
    site = Site(database_url, tmp_path, broker_url, part_bytes=PART)
    server = make_server("127.0.0.1", 0, site.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        hub = Hub(site, f"http://127.0.0.1:{server.port}")
        hub.api().create_repo("team/x")
        yield hub
    server.shutdown()
    thread.join()
    server.server_close()
    site.close()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def state(hub: Hub) -> tuple[list[str], list[str]]:
    """Return all that is stored: versions and blobs."""
    with hub.site.database.reading() as session:
        versions = session.scalars(select(Version.commit).order_by(Version.commit)).all()
        blobs = session.scalars(select(Blob.sha256).order_by(Blob.sha256)).all()
    return list(versions), list(blobs)


def commit(hub: Hub, *lines: dict[str, Any], header: dict[str, Any] | None = None) -> Any:
    told = [{"key": "header", "value": {"summary": "s", **(header or {})}}, *lines]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in told)
    return hub.send("POST", "/api/models/team/x/commit/main", content=body)


def inline(path: str, data: bytes) -> dict[str, Any]:
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}


def batch(hub: Hub, oid: str, size: int, **options: Any) -> Any:
    body = {"operation": "upload", "objects": [{"oid": oid, "size": size}]}
    return hub.send("POST", "/team/x.git/info/lfs/objects/batch", json=body, **options)


def upload(hub: Hub, data: bytes) -> None:
    """Send a file of at most one part."""
    (found,) = batch(hub, sha(data), len(data)).json()["objects"]
    if "actions" in found:
        href = found["actions"]["upload"]["href"]
        assert hub.send("PUT", href, content=data).status_code == 200


def large(path: str, data: bytes) -> dict[str, Any]:
    return {"key": "lfsFile", "value": {"path": path, "oid": sha(data), "size": len(data)}}


def lying_safetensors() -> bytes:
    sound = safetensors({"w": [8, 8]})
    return sound[:-2]


def gguf(tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


BAD_FILES = [
    ("../out.txt", b"x", "cannot be a file's path"),
    ("/abs.txt", b"x", "cannot be a file's path"),
    ("a/../../b.txt", b"x", "cannot be a file's path"),
    ("c:\\\\x.txt", b"x", "cannot be a file's path"),
    ("nul\x00.txt", b"x", "NUL"),
    ("model.bin", b"\x80\x04.", "can run code that is hidden"),
    ("train.py", b"print()", "code from a model repository"),
    ("all.zip", b"PK", "archives are not unpacked"),
    ("config.json", b'{"auto_map": {"AutoModel": "x.Y"}}', "names code to load"),
    ("config.json", b"{", "it is not JSON"),
    ("m.safetensors", lying_safetensors(), "tensors end at byte"),
    ("m.safetensors", struct.pack("<Q", 1 << 40) + b"{}", "header claims"),
    ("m.gguf", gguf(tensors=1 << 50), "claims 1125899906842624 tensors"),
    ("m.gguf", gguf(keys=2, rest=struct.pack("<Q", 1 << 40)), "claims"),
    ("m.gguf", b"GGML" + bytes(40), "does not begin as GGUF"),
    (".GITATTRIBUTES", b"x", "one name on a disk that ignores case"),
]


def test_files_that_are_not_taken(hub: Hub) -> None:
    before = state(hub)
    for path, data, why in BAD_FILES:
        refused = commit(hub, inline("good.txt", b"good"), inline(path, data))
        told = refused.headers["X-Error-Message"]
        assert (refused.status_code, why in told) == (422, True), (path, told)
        assert state(hub) == before, path
    for path in ("../x.safetensors", "x.pickle"):
        asked = {"files": [{"path": path, "size": 4, "sample": ""}]}
        refused = hub.send("POST", "/api/models/team/x/preupload/main", json=asked)
        assert refused.status_code == 422, path
    # Uploaded first, they lie there for the grace and are in no version.
    for name, data in (("w.safetensors", lying_safetensors()), ("w.gguf", gguf(1 << 50))):
        upload(hub, data)
        assert commit(hub, large(name, data)).status_code == 422
    assert state(hub)[0] == before[0]
    names = "/api/models/..%2f../x/tree/main", "/team/x/resolve/main/..%2f..%2fsecret_key"
    assert {hub.send("GET", name).status_code for name in names} <= {404, 422}


def test_malformed_commits(hub: Hub) -> None:
    before = state(hub)
    bad: list[tuple[bytes, int]] = [
        (b"", 422),
        (b"{", 400),
        (b"[]\n", 400),
        (b'{"key": "file"}\n', 422),
        (
            b'{"key": "header", "value": {"summary": "s"}}\n{"key": "x", "value": {"path": "a"}}',
            422,
        ),
        (json.dumps(inline("a.txt", b"x")).encode(), 422),  # no header
        (b'{"key": "file", "value": {"path": "a", "content": "%%%"}}\n', 422),
        (b'{"key": "lfsFile", "value": {"path": "a", "oid": "zz", "size": 1}}\n', 422),
        (b"[" * 100_000 + b"\n", 400),
        (b"x" * (13 << 20), 413),
    ]
    for body, status in bad:
        answer = hub.send("POST", "/api/models/team/x/commit/main", content=body)
        assert answer.status_code == status, (body[:60], answer.text)
        assert answer.headers["X-Error-Message"]
    stolen = large("w.bin.safetensors", b"never sent")
    assert commit(hub, stolen).status_code == 422
    assert commit(hub, inline("a.txt", b"a"), header={"parentCommit": "0" * 40}).status_code == 412
    assert commit(hub, header={"summary": "x" * 501}).status_code == 422
    pr = hub.send("POST", "/api/models/team/x/commit/main?create_pr=1", content=b"")
    assert pr.status_code == 422
    assert state(hub) == before


def test_uploads_that_are_not_what_they_say(hub: Hub) -> None:
    before = state(hub)
    data = b"right bytes" * 1000
    (found,) = batch(hub, sha(data), len(data)).json()["objects"]
    actions = found["actions"]
    short = hub.send("PUT", actions["upload"]["href"], content=data[:-1])
    long = hub.send("PUT", actions["upload"]["href"], content=data + b"x")
    assert {short.status_code, long.status_code} == {422}
    wrong = hub.send("PUT", actions["upload"]["href"], content=data[:-1] + b"!")
    assert wrong.status_code == 422
    assert "have sha256" in wrong.headers["X-Error-Message"]
    gone = hub.send("PUT", actions["upload"]["href"], content=data)
    assert gone.status_code == 404, "it begins anew"
    href = batch(hub, sha(data), len(data)).json()["objects"][0]["actions"]["upload"]["href"]
    forged = hub.send("PUT", href[:-3] + "abc", content=data)
    assert forged.status_code == 403
    assert state(hub) == before
    assert batch(hub, "zz", 3).status_code == 422
    assert batch(hub, sha(data), -1).status_code == 422
    assert batch(hub, sha(data), 1 << 60).status_code == 413
    assert batch(hub, sha(data), len(data), token=hub.site.eve.token).status_code == 404
    assert hub.send("PUT", href, content=data, headers={"Authorization": ""}).status_code == 200
    assert batch(hub, sha(data), len(data) + 1).status_code == 422, "another size"
    assert "actions" not in batch(hub, sha(data), len(data)).json()["objects"][0]


def test_parts_out_of_order_and_a_late_client(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(PART) + b"end"
    (found,) = batch(hub, sha(data), len(data)).json()["objects"]
    header, href = found["actions"]["upload"]["header"], found["actions"]["upload"]["href"]
    assert sorted(header) == ["1", "2", "chunk_size"]
    second = hub.send("PUT", header["2"], content=b"end").headers["ETag"]

    def complete(*parts: tuple[int, str], oid: str = sha(data)) -> int:
        told = [{"partNumber": number, "etag": etag} for number, etag in parts]
        return hub.send("POST", href, json={"oid": oid, "parts": told}).status_code

    assert complete((2, second)) == 422
    first = second.replace("-2", "-1")
    assert complete((1, first), (2, second)) == 422, "the first was never sent"
    assert hub.send("PUT", header["1"], content=bytes(PART)).headers["ETag"] == first
    assert complete((2, second), (1, first)) == 422
    assert complete((1, first), (2, second), oid="0" * 64) == 422
    verify = found["actions"]["verify"]["href"]
    check = {"oid": sha(data), "size": len(data)}
    assert hub.send("POST", verify, json=check).status_code == 404
    later = TimestampSigner.get_timestamp
    monkeypatch.setattr(
        TimestampSigner, "get_timestamp", lambda self: later(self) + lfs.LIFETIME + 1
    )
    late = hub.send("PUT", header["1"], content=bytes(PART))
    assert (late.status_code, "expired" in late.headers["X-Error-Message"]) == (403, True)
    again = batch(hub, sha(data), len(data)).json()["objects"][0]["actions"]["upload"]
    href = again["href"]  # signed now, and the parts are still there
    assert complete((1, first), (2, second)) == 200
    assert hub.send("POST", verify.replace(verify, href) + "/verify", json=check).status_code == 200


def test_a_quota_and_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub.site.database.transaction() as session:
        team = session.scalars(select(Project).where(Project.name == "team")).one()
        team.quota_bytes = 10_000
    before = state(hub)
    full = batch(hub, "0" * 64, 20_000)
    assert (full.status_code, "quota" in full.headers["X-Error-Message"]) == (507, True)
    assert commit(hub, inline("big.txt", bytes(20_000))).status_code == 507
    assert state(hub)[0] == before[0]
    with hub.site.database.transaction() as session:
        session.get_one(Project, team.id).quota_bytes = None
    monkeypatch.setattr(type(hub.site.services.blobs.driver), "room", lambda self: 1000)
    full = batch(hub, "0" * 64, 20_000)
    assert (full.status_code, "do not fit" in full.headers["X-Error-Message"]) == (507, True)


def test_strangers_see_nothing(hub: Hub) -> None:
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/api/models/team/x", {}),
        ("GET", "/api/models/team/x/refs", {}),
        ("GET", "/team/x/resolve/main/.gitattributes", {}),
        ("POST", "/api/models/team/x/preupload/main", {"json": {"files": []}}),
        ("POST", "/api/models/team/x/commit/main", {"content": b""}),
        ("POST", "/api/models/team/x/branch/dev", {"json": {}}),
        ("DELETE", "/api/models/team/x/tag/v1", {}),
        ("PUT", "/api/models/team/x/settings", {"json": {}}),
        ("DELETE", "/api/repos/delete", {"json": {"organization": "team", "name": "x"}}),
        ("POST", "/api/repos/move", {"json": {"fromRepo": "team/x", "toRepo": "elsewhere/x"}}),
    ]
    for method, path, options in calls:
        answer = hub.send(method, path, token=hub.site.eve.token, **options)
        told = answer.status_code, answer.headers.get("X-Error-Code")
        assert told == (404, "RepoNotFound"), (method, path)


def test_cards_are_looked_at(hub: Hub) -> None:
    def validate(content: str) -> tuple[int, dict[str, Any]]:
        answer = hub.send("POST", "/api/validate-yaml", json={"content": content})
        return answer.status_code, answer.json()

    assert validate("---\nlicense: mit\n---\n# X") == (200, {"errors": [], "warnings": []})
    status, told = validate("---\ntags: [a\n---\n")
    assert (status, "line 2" in told["errors"][0]["message"]) == (400, True)
    assert validate("# X")[1]["warnings"]
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n"
        for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert validate(f"---\n{bomb}---\n")[0] == 400


def test_of_two_publishers_one_wins_and_nothing_is_lost(hub: Hub) -> None:
    api = hub.api()
    parent = api.model_info("team/x").sha
    barrier, outcomes = threading.Barrier(2), {}

    def publish(name: str) -> None:
        operations = [CommitOperationAdd(f"{name}.txt", name.encode())]
        barrier.wait(timeout=60)
        try:
            outcomes[name] = api.create_commit(
                "team/x", operations, commit_message=name, parent_commit=parent
            ).oid
        except HfHubHTTPError as error:
            outcomes[name] = error.response.status_code

    threads = [threading.Thread(target=publish, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    (loser,) = [name for name, outcome in outcomes.items() if outcome == 412]
    (winner,) = [name for name in outcomes if name != loser]
    assert api.model_info("team/x").sha == outcomes[winner]
    operations = [CommitOperationAdd(f"{loser}.txt", loser.encode())]
    api.create_commit("team/x", operations, commit_message="Again", parent_commit=outcomes[winner])
    files = {s.rfilename for s in api.model_info("team/x").siblings or []}
    assert files >= {"one.txt", "two.txt"}
    # Without a parent both go in, one upon the other.
    barrier.reset()
    parent = None
    threads = [threading.Thread(target=publish, args=(name,)) for name in ("three", "four")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    files = {s.rfilename for s in api.model_info("team/x").siblings or []}
    assert files >= {"one.txt", "two.txt", "three.txt", "four.txt"}
