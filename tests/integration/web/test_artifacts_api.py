"""Artifacts through ``/api/v1``: publishing, refusing, downloading, aliases, lineage."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import InvalidInput
from espalier.messages import FileEntry
from scheduler.models import Artifact, Version
from tests.integration.web.site import ADAPTER, DATASET, MODEL, Site, safetensors
from web.app import MAX_BODY


def nothing_published(site: Site) -> bool:
    with site.database.reading() as session:
        return not session.query(Artifact).count() and not session.query(Version).count()


def test_publishes_and_shows_a_model(site: Site, tmp_path: Path) -> None:
    made = site.ada.publish(tmp_path, "team/base", "model", MODEL, meta={"from": "here"})
    assert made.status_code == 201, made.json
    version = made.json
    assert (version["ref"], version["kind"], version["number"]) == ("team/base@v1", "model", 1)
    assert version["size"] == sum(map(len, MODEL.values()))
    assert [f["path"] for f in version["files"]] == sorted(MODEL)
    assert (version["meta"]["from"], version["created_by"]) == ("here", "ada")
    again = site.ada.publish(tmp_path, "team/base", "model", MODEL, meta={"from": "here"})
    assert again.json["ref"] == "team/base@v1"
    more = site.ada.publish(tmp_path, "team/base", "model", {**MODEL, "README.md": b"# Hi"})
    assert more.json["ref"] == "team/base@v2"
    artifact = site.ada.get("/artifacts/team/base").json
    assert [v["ref"] for v in artifact["versions"]] == ["team/base@v2", "team/base@v1"]
    (listed,) = site.ada.get("/artifacts?kind=model&q=TEAM/BA").json["artifacts"]
    assert listed["latest"]["commit"] == more.json["commit"]
    assert site.ada.get("/artifacts?kind=dataset").json["artifacts"] == []
    by_commit = site.ada.get(f"/artifacts/team/base/versions/{version['commit'][:10]}").json
    assert by_commit["ref"] == "team/base@v1"


def test_what_it_was_made_from(site: Site, tmp_path: Path) -> None:
    site.with_inputs()
    parents = ["team/base", "team/sql@v1"]
    made = site.ada.publish(tmp_path, "team/tuned", "adapter", ADAPTER, parents=parents).json
    assert {(p["role"], p["ref"]) for p in made["parents"]} == {
        ("model", "team/base@v1"),
        ("data", "team/sql@v1"),
    }
    base = site.ada.get("/artifacts/team/base/versions/latest").json
    assert [(c["ref"], c["kind"]) for c in base["children"]] == [("team/tuned@v1", "adapter")]
    foreign = {**ADAPTER, "README.md": b"x"}
    refused = site.eve.publish(tmp_path, "elsewhere/x", "adapter", foreign, parents=parents)
    assert refused.status_code == 404


def test_files_are_downloaded_whole_and_in_ranges(site: Site, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    files = {**MODEL, "a/data ü.txt": content}
    site.ada.publish(tmp_path, "team/base", "model", files)
    url = "/artifacts/team/base/versions/latest/files/a/data ü.txt"
    whole = site.ada.get(url)
    assert whole.data == content
    assert whole.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert whole.headers["Content-Disposition"] == (
        "attachment; filename=\"data _.txt\"; filename*=UTF-8''data%20%C3%BC.txt"
    )
    assert "sandbox" in whole.headers["Content-Security-Policy"]
    assert whole.content_type == "application/octet-stream"
    for asked, start, stop in (
        ("bytes=0-9", 0, 10),
        ("bytes=10000-", 10000, 10240),
        ("bytes=-5", 10235, 10240),
        ("bytes=10230-99999", 10230, 10240),
    ):
        part = site.ada.get(url, headers={"Range": asked})
        assert part.status_code == 206
        assert part.data == content[start:stop]
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/10240"
    outside = site.ada.get(url, headers={"Range": "bytes=10240-"})
    assert outside.status_code == 416
    assert outside.headers["Content-Range"] == "bytes */10240"
    assert site.ada.get(url, headers={"Range": "bytes=0-1,5-6"}).data == content
    stale = {"Range": "bytes=0-9", "If-Range": '"older"'}
    assert site.ada.get(url, headers=stale).data == content
    fresh = {"If-None-Match": whole.headers["ETag"]}
    assert site.ada.get(url, headers=fresh).status_code == 304
    head = site.ada.send("HEAD", url)
    assert (head.content_length, head.data) == (10240, b"")


def test_pulling_with_the_real_client(site: Site, tmp_path: Path) -> None:
    files = site.ada.publish(tmp_path / "a", "team/base", "model", MODEL).json["files"]
    site.ada.transfer.pull(tmp_path / "b", [FileEntry(**file) for file in files])
    for path, data in MODEL.items():
        assert (tmp_path / "b" / path).read_bytes() == data


def test_uploads_are_verified(site: Site, tmp_path: Path) -> None:
    wrong = {"sha256": hashlib.sha256(b"right").hexdigest(), "size": 5}
    opened = site.ada.post("/uploads", wrong).json
    part = f"/uploads/{opened['upload_id']}/parts/1"
    assert site.ada.send("PUT", part, data=b"much too long").status_code == 422
    assert site.ada.send("PUT", part, data=b"shor").status_code == 422
    assert site.eve.send("PUT", part, data=b"wrong").status_code == 404
    assert site.ada.send("PUT", part, data=b"wrong").status_code == 204
    assert site.ada.send("PUT", part[:-1] + "2", data=b"x").status_code == 422
    complete = f"/uploads/{opened['upload_id']}/complete"
    assert site.eve.post(complete).status_code == 404
    refused = site.ada.post(complete)
    assert (refused.status_code, refused.json["code"]) == (422, "invalid_input")
    assert site.ada.post("/blobs/missing", {"blobs": [wrong]}).json["missing"] == [wrong["sha256"]]
    assert site.ada.post("/uploads", {"sha256": "../../x", "size": 1}).status_code == 422
    assert site.ada.post("/uploads", {"sha256": "0" * 64, "size": -1}).status_code == 422
    assert site.ada.post("/uploads", {"sha256": "0" * 64, "size": 1 << 60}).status_code == 413
    empty = site.ada.upload(tmp_path, {"empty.txt": b""})
    assert site.ada.post("/blobs/missing", {"blobs": [_blob(empty[0])]}).json["missing"] == []


def test_knowing_a_sha256_is_not_having_the_file(site: Site, tmp_path: Path) -> None:
    secret = {**MODEL, "README.md": b"what only the team knows"}
    files = site.ada.publish(tmp_path / "a", "team/base", "model", secret).json["files"]
    blobs = [_blob(file) for file in files]
    assert site.ada.post("/blobs/missing", {"blobs": blobs}).json["missing"] == []
    missing = site.eve.post("/blobs/missing", {"blobs": blobs}).json["missing"]
    assert missing == [blob["sha256"] for blob in blobs]
    body = {"kind": "model", "files": files}
    refused = site.eve.post("/artifacts/elsewhere/mine/versions", body)
    assert refused.status_code == 422
    assert "not in the store" in refused.json["detail"]
    upload = site.eve.post("/uploads", blobs[0]).json
    assert upload["upload_id"] is not None
    assert site.eve.post(f"/uploads/{upload['upload_id']}/complete").status_code == 422
    made = site.eve.publish(tmp_path / "b", "elsewhere/mine", "model", secret)
    assert made.status_code == 201  # whoever brings the bytes has them
    assert site.eve.get("/artifacts/elsewhere/mine/versions/1/files/README.md").status_code == 200
    assert site.ada.get("/artifacts/team/base/versions/1/files/README.md").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_parts_may_be_larger_than_other_requests(site: Site, tmp_path: Path) -> None:
    assert site.settings.part_bytes > MAX_BODY
    (entry,) = site.ada.upload(tmp_path, {"large.txt": bytes(MAX_BODY + 1)})
    assert site.ada.post("/blobs/missing", {"blobs": [_blob(entry)]}).json["missing"] == []


def _blob(entry: dict[str, Any]) -> dict[str, Any]:
    return {"sha256": entry["sha256"], "size": entry["size"]}


BAD_MODELS = [
    ({"pytorch_model.bin": b"\x80\x04"}, "pytorch_model.bin", "can run code"),
    ({"modeling_x.py": b"import os"}, "modeling_x.py", "code from a model repository"),
    ({"config.json": b'{"auto_map": {"AutoModel": "x.Y"}}'}, "config.json", "auto_map"),
    ({"config.json": b'{"model_file": "x.py"}'}, "config.json", "model_file"),
    ({"config.json": b"{"}, "config.json", "not JSON"),
    ({"model.safetensors": b"x" * 100}, "model.safetensors", "header"),
    ({"model.safetensors": safetensors()[:-2]}, "model.safetensors", "tensors end"),
    ({"weights.tar.gz": b"x"}, "weights.tar.gz", "archives"),
]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("change", "path", "told"), BAD_MODELS)
def test_a_model_that_could_run_code_is_refused(
    change: dict[str, bytes], path: str, told: str, site: Site, tmp_path: Path
) -> None:
    refused = site.ada.publish(tmp_path, "team/base", "model", {**MODEL, **change})
    assert refused.status_code == 422
    assert told in refused.json["detail"]
    assert refused.json["errors"][0]["loc"] == ["files", path]
    assert nothing_published(site)


def test_a_folder_that_is_no_model_is_refused(site: Site, tmp_path: Path) -> None:
    for kind, files, missing in (
        ("model", MODEL, "config.json"),
        ("model", MODEL, "model.safetensors"),
        ("model", MODEL, "tokenizer.json"),
        ("adapter", ADAPTER, "adapter_config.json"),
        ("adapter", ADAPTER, "adapters.safetensors"),
    ):
        rest = {path: data for path, data in files.items() if path != missing}
        refused = site.ada.publish(tmp_path, "team/x", kind, rest)
        assert refused.status_code == 422
        assert f"This is no {kind}" in refused.json["detail"]
    for kind in ("gguf", "report", "zip"):
        assert site.ada.publish(tmp_path, "team/x", kind, MODEL).status_code == 422
    assert nothing_published(site)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "C:x", "a\x00b", "a//b", ".", "x" * 600]
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_path_that_leaves_its_folder_is_refused(path: str, site: Site, tmp_path: Path) -> None:
    files = site.ada.upload(tmp_path, MODEL)
    files.append({**files[0], "path": path})
    refused = site.ada.post("/artifacts/team/x/versions", {"kind": "model", "files": files})
    assert refused.status_code == 422
    assert nothing_published(site)
    fetched = site.ada.get(f"/artifacts/team/x/versions/latest/files/{path}")
    assert fetched.status_code in (404, 422)


def test_names_and_projects_that_cannot_be(site: Site, tmp_path: Path) -> None:
    body = {"kind": "model", "files": site.ada.upload(tmp_path, MODEL)}
    for ref, status in (
        ("team/..", 422),
        ("team/a..b", 422),
        ("team/-x", 422),
        ("team/a%00b", 422),
        ("jobs/x", 422),
        ("elsewhere/x", 404),
        ("nowhere/x", 404),
    ):
        assert site.ada.post(f"/artifacts/{ref}/versions", body).status_code == status, ref
    unknown = [{**body["files"][0], "sha256": "0" * 64}, *body["files"][1:]]
    missing = site.ada.post("/artifacts/team/x/versions", {"kind": "model", "files": unknown})
    assert missing.status_code == 422
    assert missing.json["errors"][0]["loc"][:2] == ["files", 0]
    assert nothing_published(site)
    site.ada.publish(tmp_path, "team/x", "model", MODEL)
    clash = site.ada.publish(tmp_path / "a", "team/x", "adapter", ADAPTER)
    assert (clash.status_code, clash.json["code"]) == (409, "conflict")


def test_strangers_see_no_artifact(site: Site, tmp_path: Path) -> None:
    files = site.ada.publish(tmp_path, "team/base", "model", MODEL).json["files"]
    assert site.eve.get("/artifacts").json["artifacts"] == []
    for path in ("", "/versions/latest", "/versions/v1/files/config.json"):
        refused = site.eve.get(f"/artifacts/team/base{path}")
        assert refused.status_code == 404
        assert "team/base" not in (refused.json.get("hint") or "")
    assert site.eve.get(f"/blobs/{files[0]['sha256']}").status_code == 404
    assert (
        site.eve.send("PUT", "/artifacts/team/base/aliases/best", json={"version": "1"}).status_code
        == 404
    )
    assert site.ada.get(f"/blobs/{files[0]['sha256']}").status_code == 200


def test_an_absent_artifact_or_version_names_the_nearest(site: Site, tmp_path: Path) -> None:
    site.ada.publish(tmp_path, "team/base", "model", MODEL)
    assert "team/base" in site.ada.get("/artifacts/team/bass").json["hint"]
    absent = site.ada.get("/artifacts/team/base/versions/v7")
    assert absent.status_code == 404
    assert "v1" in absent.json["hint"]
    file = site.ada.get("/artifacts/team/base/versions/v1/files/nothing.json")
    assert file.status_code == 404


def test_aliases_move_by_compare_and_swap(site: Site, tmp_path: Path) -> None:
    first = site.ada.publish(tmp_path, "team/base", "model", MODEL).json["commit"]
    site.ada.publish(tmp_path, "team/base", "model", {**MODEL, "README.md": b"2"})
    alias = "/artifacts/team/base/aliases/production"
    put = site.ada.send("PUT", alias, json={"version": "v1"})
    assert put.json == {"alias": "production", "ref": "team/base@v1", "commit": first}
    moved = site.ada.send("PUT", alias, json={"version": "v2", "expected": first})
    assert moved.json["ref"] == "team/base@v2"
    late = site.ada.send("PUT", alias, json={"version": "v1", "expected": first})
    assert (late.status_code, late.json["code"]) == (409, "conflict")
    assert site.ada.get("/artifacts/team/base").json["aliases"] == {"production": "v2"}
    assert site.ada.get("/artifacts/team/base/versions/production").json["number"] == 2
    assert site.ada.send("PUT", alias[:-10] + "v3", json={"version": "v1"}).status_code == 422
    assert site.ada.send("DELETE", alias).status_code == 204
    assert site.ada.send("DELETE", alias).status_code == 404


def test_bad_data_is_refused_with_file_line_and_column(site: Site, tmp_path: Path) -> None:
    for change, told in (
        ({"train.jsonl": b'{"text": "a"}\n{"text": \n'}, ("train.jsonl", "line 2")),
        ({"valid.jsonl": b""}, ("valid.jsonl",)),
        ({"train.jsonl": DATASET["train.jsonl"] + b'{"text": "x"}\n'}, ("train.jsonl", "line 9")),
        ({"train.jsonl": b'{"prompt": "x", "completion": ""}\n' * 8}, ("train.jsonl",)),
    ):
        refused = site.ada.publish(tmp_path, "team/sql", "dataset", {**DATASET, **change})
        assert refused.status_code == 422, change
        text = refused.json["detail"] + str(refused.json["errors"])
        assert all(word in text for word in told), refused.json
    assert nothing_published(site)
    with pytest.raises(InvalidInput):  # the client raises what the server refused with
        site.ada.client.post(
            "/api/v1/artifacts/team/sql/versions", {"kind": "dataset", "files": []}
        )


def test_the_bytes_of_a_deleted_artifact_are_nobody_s(site: Site, tmp_path: Path) -> None:
    """Until it is restored: their sha256 alone brings them back to nobody."""
    site.ada.publish(tmp_path / "one", "team/going", "model", MODEL)
    sha256 = hashlib.sha256(MODEL["model.safetensors"]).hexdigest()
    assert site.ada.get(f"/blobs/{sha256}").status_code == 200
    assert site.admin.send("DELETE", "/artifacts/team/going").status_code == 204
    assert site.ada.get(f"/blobs/{sha256}").status_code == 404
    assert site.admin.post("/artifacts/team/going/restore").status_code == 204
    assert site.ada.get(f"/blobs/{sha256}").status_code == 200
