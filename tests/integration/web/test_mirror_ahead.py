"""Fetching ahead, for all or with somebody's own token; throwing out by age and by hand."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError
from pydantic import SecretStr
from typer.testing import CliRunner

from espalier.cli.app import app
from espalier.ids import new_id
from espalier.settings import settings
from scheduler import access
from scheduler.models import User
from tests.integration.web.behind import FILES, WEIGHTS, Stage, staged, until
from tests.integration.web.site import MODEL, Door, safetensors
from web import create_app
from web.mirror import prefetch
from web.services import Services

DAY = 86_400


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Stage]:
    """This server reads `acme` upstream by its own token; `walled` is eve's alone there."""
    root = tmp_path_factory.mktemp("ahead")
    with staged(
        root,
        broker_url,
        upstream_allow=("acme/*", "walled/*"),
        upstream_deny=("acme/Secret*",),
        mirror_bytes=64 << 20,
        mirror_days=7,
    ) as stage:
        far = stage.far
        with far.database.transaction() as session:
            walled = access.project_for(session, access.SYSTEM, "walled", create=True)
            reader = access.create_user(session, "reader")
            acme = access.project_for(session, access.SYSTEM, "acme")
            access.add_member(session, acme, reader.id)
            eve = session.query(User).filter_by(name="eve").one()
            access.add_member(session, walled, eve.id)
            token = SecretStr(access.mint(session, "personal", user=reader))
        stage.site.services.mirror.upstream._token = token
        yield stage


def publish(stage: Stage, ref: str, **more: bytes) -> dict[str, bytes]:
    """Put a model upstream whose weights are no other one's."""
    weights = safetensors({new_id(): [512, 512]})
    files = {**MODEL, "model.safetensors": weights, **more}
    folder = stage.far.directory / new_id()
    assert stage.far.admin.publish(folder, ref, "model", files).status_code == 201
    return files


def ask(door: Door, repo: str, **options: Any) -> dict[str, Any]:
    body = {"repo": repo, **options.pop("body", {})}
    answer = door.post("/mirror/prefetch", body, **options)
    assert answer.status_code == 202, answer.json
    found: dict[str, Any] = answer.json
    return found


def ended(door: Door, one: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while one["state"] in ("waiting", "running"):
        assert time.monotonic() < deadline, one
        time.sleep(0.02)
        one = door.get(f"/mirror/prefetch/{one['id']}").json
    return one


def fetch(stage: Stage, door: Door, repo: str, folder: Path, name: str = "config.json") -> bytes:
    found = hf_hub_download(repo, name, endpoint=stage.ours.url, token=door.token, cache_dir=folder)
    return Path(found).read_bytes()


def test_what_was_fetched_ahead_needs_no_hub(stage: Stage, tmp_path: Path) -> None:
    files = publish(stage, "acme/ahead", **{"README.md": b"not among the usual"})
    done = ended(stage.site.ada, ask(stage.site.ada, "acme/ahead"))
    assert (done["state"], done["error"], done["closed"]) == ("done", None, False)
    assert done["files"] == 3
    assert done["have"] == done["size"] == sum(len(files[name]) for name in MODEL)
    seen = stage.upstream.seen["GET model.safetensors"]
    again = ended(stage.site.eve, ask(stage.site.eve, "acme/ahead"))
    assert again["id"] == done["id"]
    assert again["have"] == again["size"]
    stage.upstream.stop()
    try:
        for name in MODEL:
            assert fetch(stage, stage.site.ada, "acme/ahead", tmp_path, name) == files[name]
        api = HfApi(endpoint=stage.ours.url, token=stage.site.ada.token)
        assert {item.path for item in api.list_repo_tree("acme/ahead", revision=done["commit"])}
        head = stage.site.ada.http.head(
            "/acme/ahead/resolve/main/README.md",
            headers={"Authorization": f"Bearer {stage.site.ada.token}"},
        )
        assert head.status_code == 504
        assert "does not answer" in head.headers["X-Error-Message"]
    finally:
        stage.upstream.start()
    assert stage.upstream.seen["GET model.safetensors"] == seen


def test_patterns_choose_files(stage: Stage) -> None:
    publish(stage, "acme/chosen", **{"README.md": b"chosen"})
    wish = {"include": ["*.md", "config.*"]}
    done = ended(stage.site.ada, ask(stage.site.ada, "acme/chosen", body=wish))
    assert (done["state"], done["files"]) == ("done", 2)
    none = ended(stage.site.ada, ask(stage.site.ada, "acme/chosen", body={"include": ["*.onnx"]}))
    assert none["state"] == "failed"
    assert "no file that matches *.onnx" in none["error"]


def test_a_restarted_server_goes_on(stage: Stage) -> None:
    publish(stage, "acme/begun")
    stage.upstream.hold.clear()
    before = stage.upstream.seen["GET model.safetensors"]
    begun = ask(stage.site.ada, "acme/begun")
    try:
        until(lambda: stage.upstream.seen["GET model.safetensors"] == before + 1)
        assert stage.site.ada.get(f"/mirror/prefetch/{begun['id']}").json["state"] == "running"
        other: Services = create_app(stage.site.settings).extensions["espalier"]
        stage.site.services.prefetcher.stop()  # as a server does that is told to end
        other.prefetcher.start()  # and here is the next one, while the first still has the file
    finally:
        stage.upstream.hold.set()
    until(lambda: other.prefetcher.find(begun["id"], None).state == "done")
    other.prefetcher.stop()
    other.database.close()
    assert stage.upstream.seen["GET model.safetensors"] == before + 1, "one GET for both"
    stage.site.services.prefetcher._ended.clear()
    stage.site.services.prefetcher._thread = None


def test_what_a_person_s_token_fetched_is_for_those_who_have_one(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = publish(stage, "walled/garden")
    ada, eve, admin = stage.site.ada, stage.site.eve, stage.site.admin
    own = {"X-Upstream-Token": stage.far.eve.token}
    refused = ended(ada, ask(ada, "walled/garden"))
    assert refused["state"] == "failed"
    assert "--with-token" in refused["hint"]
    wrong = ended(ada, ask(ada, "walled/garden", headers={"X-Upstream-Token": "hf_none"}))
    assert (wrong["state"], wrong["closed"]) == ("failed", False)
    done = ended(ada, ask(ada, "walled/garden", headers=own))
    assert (done["state"], done["closed"]) == ("done", True), done
    assert fetch(stage, ada, "walled/garden", tmp_path / "a") == files["config.json"]

    for stranger in (eve, admin):
        with pytest.raises(RepositoryNotFoundError):
            fetch(stage, stranger, "walled/garden", tmp_path / "s")
        shown = stranger.get("/mirror").json
        assert "walled/garden" not in [one["repo"] for one in shown["repos"] if one["closed"]]
        assert done["id"] not in [one["id"] for one in shown["prefetches"]]
        assert stranger.get(f"/mirror/prefetch/{done['id']}").status_code == 404
    mine = ada.get("/mirror").json
    assert [one["repo"] for one in mine["repos"] if one["closed"]] == ["walled/garden"]

    stage.upstream.stop()
    try:
        name = "model.safetensors"
        assert fetch(stage, ada, "walled/garden", tmp_path / "b", name) == files[name]
    finally:
        stage.upstream.start()
    secret = stage.far.eve.token
    written = [path for path in stage.site.directory.rglob("*") if path.is_file()]
    assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert secret not in caplog.text

    seen = stage.upstream.seen["GET model.safetensors"]
    hers = ended(eve, ask(eve, "walled/garden", headers=own))
    assert hers["state"] == "done"
    assert fetch(stage, eve, "walled/garden", tmp_path / "e") == files["config.json"]
    assert stage.upstream.seen["GET model.safetensors"] == seen, "proved, not fetched again"


def test_a_right_that_was_proved_ends_after_a_while(stage: Stage, tmp_path: Path) -> None:
    publish(stage, "walled/lapsed")
    ada = stage.site.ada
    own = {"X-Upstream-Token": stage.far.eve.token}
    assert ended(ada, ask(ada, "walled/lapsed", headers=own))["state"] == "done"
    said = stage.site.directory / "mirror" / "said" / "models" / "walled--lapsed@closed"
    for grant in said.glob("*.grant"):
        os.utime(grant, (0, time.time() - 31 * DAY))
    with pytest.raises(RepositoryNotFoundError):
        fetch(stage, ada, "walled/lapsed", tmp_path)


def test_a_worker_reads_it_for_the_job_of_one_who_may(stage: Stage) -> None:
    publish(stage, "walled/base")
    site = stage.site.with_inputs()
    own = {"X-Upstream-Token": stage.far.eve.token}
    assert ended(site.ada, ask(site.ada, "walled/base", headers=own))["state"] == "done"
    (first, _), (second, _) = site.worker("first"), site.worker("second")

    def status(door: Door) -> int:
        return door.get("/walled/base/resolve/main/config.json").status_code

    for door in (first, second):
        door.prefix = ""
        assert status(door) == 404
    site.submit(spec={"kind": "train", "model": "hf:walled/base", "data": "team/sql", "iters": 1})
    assert site.tick()
    assert sorted((status(first), status(second))) == [200, 404]


def test_a_denied_repository_is_fetched_under_no_spelling(stage: Stage) -> None:
    publish(stage, "acme/secret-sauce")
    before = stage.upstream.seen.total()
    for repo in ("acme/secret-sauce", "Acme/SECRET-sauce"):
        answer = stage.site.ada.post("/mirror/prefetch", {"repo": repo})
        assert answer.status_code == 403
        assert "ESPALIER_UPSTREAM_DENY" in answer.json["hint"]
    assert stage.upstream.seen.total() == before


@pytest.mark.parametrize("repo", ["x", "../x", "a/../b", "a--b/c", "a/b/c", "a/", ".a/b"])
def test_names_that_are_none(stage: Stage, repo: str) -> None:
    assert stage.site.ada.post("/mirror/prefetch", {"repo": repo}).status_code == 422


def test_what_nobody_used_for_days_goes_except_what_is_needed(stage: Stage) -> None:
    site = stage.site
    for name in ("old", "wanted"):
        publish(stage, f"acme/{name}")
        assert ended(site.ada, ask(site.ada, f"acme/{name}"))["state"] == "done"
    job = site.with_inputs().submit(
        spec={"kind": "train", "model": "hf:acme/wanted", "data": "team/sql", "iters": 1}
    )
    root = site.directory / "mirror"
    eight_days_ago = time.time() - 8 * DAY
    for path in (*root.glob("blobs/*"), *root.glob("said/models/acme--*/*")):
        os.utime(path, (eight_days_ago, eight_days_ago))
    swept = site.services.mirror.room.sweep()
    assert swept.files > 0
    kept = {one["repo"]: one for one in site.ada.get("/mirror").json["repos"]}
    assert kept["acme/wanted"]["have"] == kept["acme/wanted"]["size"]
    assert kept["acme/wanted"]["needed"]
    assert "acme/old" not in kept
    assert site.services.mirror.room.sweep().files == 0
    refused = site.admin.send("DELETE", "/mirror/models/acme/wanted")
    assert refused.status_code == 409
    assert site.ada.post(f"/jobs/{job}/cancel").status_code == 200


def test_an_admin_throws_a_repository_out(stage: Stage) -> None:
    publish(stage, "acme/away")
    ada, admin = stage.site.ada, stage.site.admin
    done = ended(ada, ask(ada, "acme/away"))
    assert ada.send("DELETE", "/mirror/models/acme/away").status_code == 403
    freed = admin.send("DELETE", "/mirror/models/acme/away").json
    # config.json and tokenizer.json are those of other repositories too.
    assert freed == {"files": 1, "bytes": 0 + freed["bytes"]}
    assert freed["bytes"] > 512 * 512
    now = ada.get(f"/mirror/prefetch/{done['id']}").json
    assert now["have"] == now["size"] - freed["bytes"]
    assert admin.send("DELETE", "/mirror/models/acme/..").status_code in (404, 422)


def test_the_command(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(stage, "acme/by-command")
    monkeypatch.setenv("ESPALIER_URL", stage.ours.url)
    monkeypatch.setenv("ESPALIER_TOKEN", stage.site.ada.token)
    settings.cache_clear()

    def run(*arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(app, ["model", *arguments], input=stdin)

    try:
        done = run("prefetch", "acme/by-command@main", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["state"] == "done"
        assert "acme/by-command@main" in run("prefetch").stdout
        refused = run("prefetch", "walled/none", "--with-token", stdin="hf_wrong\n")
        assert refused.exit_code == 1
        assert "hf_wrong" not in refused.output
    finally:
        settings.cache_clear()


def test_weights_are_shared_between_open_repositories(stage: Stage) -> None:
    files = {**FILES}
    stage.far.admin.publish(stage.far.directory / "twin", "acme/twin", "model", files)
    assert ended(stage.site.ada, ask(stage.site.ada, "acme/tiny"))["state"] == "done"
    seen = stage.upstream.seen["GET model.safetensors"]
    twin = ended(stage.site.ada, ask(stage.site.ada, "acme/twin"))
    assert twin["have"] == twin["size"] >= len(WEIGHTS)
    assert stage.upstream.seen["GET model.safetensors"] == seen


def test_a_hub_that_is_away_is_waited_for_a_while(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(stage, "acme/later")
    monkeypatch.setattr(prefetch, "PAUSES", (0.01, 60.0))
    stage.upstream.stop()
    try:
        one = ask(stage.site.ada, "acme/later")
        until(lambda: stage.site.services.mirror.upstream.is_resting)
    finally:
        stage.upstream.start()
    # The second pause is long: only the end of the first try could have been seen as a failure.
    assert stage.site.ada.get(f"/mirror/prefetch/{one['id']}").json["state"] != "failed"
