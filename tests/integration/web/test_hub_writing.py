"""Writing over the Hugging Face Hub's protocol, by its own client over a socket."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from werkzeug.serving import make_server

from tests.integration.web.site import ADAPTER, DATASET, MODEL, Site, safetensors


@dataclass
class Hub:
    """A server, and the client's library pointed at it."""

    site: Site
    url: str

    def api(self, token: str | None = None) -> HfApi:
        return HfApi(endpoint=self.url, token=token or self.site.ada.token)

    def send(self, method: str, path: str, token: str | None = None, **options: object):
        headers = {"Authorization": f"Bearer {token or self.site.ada.token}"}
        return httpx.request(method, self.url + path, headers=headers, timeout=60, **options)


@pytest.fixture(scope="module")
def hub(
    migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> Iterator[Hub]:
    """One server for all of these: every test has a repository of its own."""
    import shutil

    directory = tmp_path_factory.mktemp("hub")
    shutil.copy(migrated_sqlite, directory / "espalier.db")
    site = Site(f"sqlite:///{directory / 'espalier.db'}", directory, broker_url, part_bytes=5 << 20)
    server = make_server("127.0.0.1", 0, site.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield Hub(site, f"http://127.0.0.1:{server.port}")
    server.shutdown()
    thread.join()
    server.server_close()
    site.close()


def pulled(hub: Hub, repo: str, where: Path, **options: object) -> dict[str, bytes]:
    root = Path(
        snapshot_download(
            repo, endpoint=hub.url, token=hub.site.ada.token, cache_dir=where, **options
        )
    )
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_folder_goes_up_and_comes_down_again(hub: Hub, tmp_path: Path) -> None:
    api = hub.api()
    url = api.create_repo("team/up")
    assert (url.repo_id, url.repo_type) == ("team/up", "model")
    folder = tmp_path / "model"
    big = safetensors({"w": [1024, 5600]})  # three parts of 5 MiB
    files = {**MODEL, "model.safetensors": big, "sub/notes.md": b"# Notes\n"}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    made = api.upload_folder(repo_id="team/up", folder_path=folder, commit_message="All of it")
    got = pulled(hub, "team/up", tmp_path / "cache")
    assert {k: v for k, v in got.items() if k != ".gitattributes"} == files
    commits = api.list_repo_commits("team/up")
    assert [c.title for c in commits] == ["All of it", "initial commit"]
    assert made.oid == commits[0].commit_id == api.model_info("team/up").sha
    again = api.upload_folder(repo_id="team/up", folder_path=folder)
    assert again.oid == made.oid
