"""The Hugging Face Hub's protocol, spoken by its own client over a socket."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder
from werkzeug.serving import make_server

from tests.integration.web.site import DATASET, MODEL, Site, safetensors
from web.hub import repos

BIG = safetensors({"w": [64, 64]})
SECOND = {**MODEL, "model.safetensors": BIG, "sub/notes.md": b"# Notes\n"}


@dataclass
class Hub:
    """A server, its repositories' commits, and the client's library pointed at it."""

    site: Site
    url: str
    first: str
    second: str

    def api(self, token: str | None = None) -> HfApi:
        return HfApi(endpoint=self.url, token=token or self.site.ada.token)


@pytest.fixture
def hub(site: Site) -> Iterator[Hub]:
    """``team/base`` in two versions, the first of which is ``production``, and ``team/sql``."""
    site.with_inputs()
    first = site.ada.get("/artifacts/team/base").json["latest"]["commit"]
    site.ada.send("PUT", "/artifacts/team/base/aliases/production", json={"version": "v1"})
    published = site.ada.publish(site.directory / "m2", "team/base", "model", SECOND)
    server = make_server("127.0.0.1", 0, site.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Hub(site, f"http://127.0.0.1:{server.port}", first, published.json["commit"])
    server.shutdown()
    thread.join()
    server.server_close()


def read(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_snapshot_by_branch_alias_tag_and_commit(hub: Hub, tmp_path: Path) -> None:
    def snapshot(revision: str | None, **more: object) -> dict[str, bytes]:
        return read(
            snapshot_download(
                "team/base",
                revision=revision,
                endpoint=hub.url,
                token=hub.site.ada.token,
                cache_dir=tmp_path,
                **more,
            )
        )

    assert snapshot(None) == snapshot("main") == snapshot("v2") == snapshot(hub.second) == SECOND
    assert snapshot("production") == snapshot("v1") == snapshot(hub.first) == MODEL
    only = snapshot("main", allow_patterns=["*.json"], local_files_only=False)
    assert only.keys() >= {"config.json", "tokenizer.json"}


def test_one_file_its_range_and_the_names_of_its_bytes(hub: Hub, tmp_path: Path) -> None:
    path = hf_hub_download(
        "team/base",
        "model.safetensors",
        endpoint=hub.url,
        token=hub.site.ada.token,
        cache_dir=tmp_path,
    )
    assert Path(path).read_bytes() == BIG
    assert Path(path).resolve().name == hashlib.sha256(BIG).hexdigest(), "large files by sha256"
    small = hub.site.ada.send("GET", "/api/models/team/base")
    (config,) = [f for f in small.json["siblings"] if f["rfilename"] == "config.json"]
    git = hashlib.sha1(b"blob %d\0" % len(MODEL["config.json"]) + MODEL["config.json"])
    assert config["blobId"] == git.hexdigest()
    fs = HfFileSystem(endpoint=hub.url, token=hub.site.ada.token)
    with fs.open("team/base/model.safetensors", "rb") as file:
        file.seek(100)
        assert file.read(50) == BIG[100:150]
    assert fs.ls("team/base/sub", detail=False) == ["team/base/sub/notes.md"]


def test_what_a_repository_says_of_itself(hub: Hub) -> None:
    api = hub.api()
    found = api.model_info("team/base", files_metadata=True)
    assert (found.sha, found.author, found.private) == (hub.second, "team", True)
    assert {s.rfilename: s.size for s in found.siblings or []} == {
        path: len(data) for path, data in SECOND.items()
    }
    assert api.model_info("team/base", revision="production").sha == hub.first
    assert api.dataset_info("team/sql").id == "team/sql"
    tree = list(api.list_repo_tree("team/base"))
    assert [type(e) for e in tree if e.path == "sub"] == [RepoFolder]
    assert "sub/notes.md" not in {e.path for e in tree}
    everything = api.list_repo_tree("team/base", recursive=True)
    assert {e.path for e in everything if isinstance(e, RepoFile)} == set(SECOND)
    (one,) = api.get_paths_info("team/base", ["sub/notes.md", "absent"])
    assert one.path == "sub/notes.md"
    refs = api.list_repo_refs("team/base")
    assert {b.name: b.target_commit for b in refs.branches} == {
        "main": hub.second,
        "production": hub.first,
    }
    assert {t.name: t.target_commit for t in refs.tags} == {"v1": hub.first, "v2": hub.second}
    commits = api.list_repo_commits("team/base")
    assert [(c.commit_id, c.title, c.authors) for c in commits] == [
        (hub.second, "v2", ["ada"]),
        (hub.first, "v1", ["ada"]),
    ]
    assert api.whoami()["name"] == "ada"


def test_lists_and_their_pages(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repos, "LIST_PAGE", 1)
    hub.site.ada.publish(hub.site.directory / "m3", "team/other", "model", MODEL)
    api = hub.api()
    assert {m.id for m in api.list_models()} == {"team/base", "team/other"}
    assert [m.id for m in api.list_models(search="oth")] == ["team/other"]
    assert [d.id for d in api.list_datasets(author="team")] == ["team/sql"]
    monkeypatch.setattr(repos, "TREE_PAGE", 2)
    tree = api.list_repo_tree("team/base", recursive=True)
    assert {e.path for e in tree} == {*SECOND, "sub"}


def test_errors_are_the_client_s_own(hub: Hub) -> None:
    api = hub.api()
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("team/absent")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("team/sql")  # a data set
    with pytest.raises(RevisionNotFoundError):
        api.model_info("team/base", revision="v9")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("team/base", "absent.bin")
    with pytest.raises(RepositoryNotFoundError):
        hub.api(hub.site.eve.token).model_info("team/base")  # hers is another project
    with pytest.raises(HfHubHTTPError) as refused:
        hub.api("hf_" + "0" * 34).model_info("team/base")
    assert refused.value.response.status_code == 401
    hostile = hub.site.ada.http.get(
        "/team/base/resolve/main/..%2f..%2fsecret_key",
        headers={"Authorization": f"Bearer {hub.site.ada.token}"},
    )
    assert hostile.status_code in (404, 422)


def test_a_data_set_is_pulled_as_one(hub: Hub, tmp_path: Path) -> None:
    folder = snapshot_download(
        "team/sql",
        repo_type="dataset",
        endpoint=hub.url,
        token=hub.site.ada.token,
        cache_dir=tmp_path,
    )
    assert read(folder) == DATASET
