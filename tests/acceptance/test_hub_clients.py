"""What people do with huggingface_hub, on this hub: by the newest version and an old one that is

still common, with Xet and without. Each test's body runs in the client's process (hub_client).
"""

import json
import os
import random
from pathlib import Path

import pytest

from tests.acceptance.hub_client import Hub, in_client, read, sha256
from tests.integration.web.samples import DATASET, MODEL, safetensors

#: `make test` sends 12 MB (three parts) where `make faults` sends 300.
LARGE = int(os.environ.get("HUB_LARGE_BYTES", "12000000"))
CARD = b"---\nlicense: mit\ntags: [sql]\n---\n# A model\n"


@in_client
def test_it_is_the_client_that_it_should_be(hub: Hub) -> None:
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_DISABLE_XET

    version, _, way = hub.label.partition("-")
    assert huggingface_hub.__version__.startswith("2." if version == "newest" else "0.36.")
    assert (way == "plain") == HF_HUB_DISABLE_XET
    assert hub.api.whoami()["name"] == "ada"
    assert [org["name"] for org in hub.api.whoami()["orgs"]] == ["team"]


# --- Creating and uploading ---------------------------------------------------------------


@in_client
def test_a_repository_is_created_once(hub: Hub) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    repo = hub.new("created")
    assert hub.api.repo_exists(repo)
    assert str(hub.api.create_repo(repo, exist_ok=True)).endswith(repo)
    with pytest.raises(HfHubHTTPError) as refused:
        hub.api.create_repo(repo)
    assert refused.value.response.status_code == 409
    with pytest.raises(HfHubHTTPError):  # it is no project of hers
        hub.stranger.create_repo(f"team/stolen-{hub.label}")
    (commit,) = hub.api.list_repo_commits(repo)
    assert commit.title == "initial commit"
    assert hub.api.list_repo_files(repo) == [".gitattributes"]


@in_client
def test_a_file_is_uploaded_and_comes_back(hub: Hub) -> None:
    repo = hub.new("file")
    told = hub.api.upload_file(
        path_or_fileobj=CARD,
        path_in_repo="README.md",
        repo_id=repo,
        commit_message="The card",
        commit_description="What the model is for.",
    )
    assert hub.api.model_info(repo).sha == told.oid
    path = hub.api.hf_hub_download(repo, "README.md", cache_dir=hub.folder)
    assert Path(path).read_bytes() == CARD
    newest, first = hub.api.list_repo_commits(repo)
    assert (newest.commit_id, newest.title) == (told.oid, "The card")
    assert newest.message == "What the model is for."
    assert newest.authors == ["ada"]
    assert first.title == "initial commit"
    info = hub.api.model_info(repo)
    assert info.card_data is not None
    assert info.card_data.license == "mit"


@in_client
def test_a_folder_is_uploaded_and_comes_back(hub: Hub) -> None:
    repo = hub.new("folder")
    files = {**MODEL, "README.md": CARD, "notes/one.txt": b"one", "notes/two.log": b"two"}
    hub.api.upload_folder(
        repo_id=repo, folder_path=hub.write(files), ignore_patterns=["*.log"], commit_message="All"
    )
    del files["notes/two.log"]
    found = read(hub.api.snapshot_download(repo, cache_dir=hub.folder / "cache"))
    assert found.pop(".gitattributes")
    assert found == files
    local = hub.folder / "local"
    hub.api.snapshot_download(repo, local_dir=local)
    assert read(local)["notes/one.txt"] == b"one"
    hub.api.upload_folder(
        repo_id=repo, folder_path=hub.write({"three.txt": b"three"}), path_in_repo="notes"
    )
    assert "notes/three.txt" in hub.api.list_repo_files(repo)


@in_client
def test_a_data_set_is_uploaded_and_comes_back(hub: Hub) -> None:
    repo = hub.new("data", repo_type="dataset")
    hub.api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=hub.write(DATASET))
    assert hub.api.dataset_info(repo).id == repo
    folder = hub.api.snapshot_download(repo, repo_type="dataset", cache_dir=hub.folder)
    assert DATASET.items() <= read(folder).items()


@in_client
def test_a_large_file_is_uploaded_and_a_changed_one_again(hub: Hub) -> None:
    repo = hub.new("large")
    source = random.Random(hub.label)
    data = b"".join(source.randbytes(LARGE // 10) for _ in range(10))
    path = hub.write({"large.dat": data}) / "large.dat"

    def upload() -> int:
        before = hub.received()
        hub.api.upload_file(path_or_fileobj=path, path_in_repo="large.dat", repo_id=repo)
        return hub.received() - before

    assert upload() >= LARGE
    (told,) = hub.api.get_paths_info(repo, ["large.dat"])
    assert told.lfs is not None
    assert (told.lfs.sha256, told.size) == (sha256(data), LARGE)
    back = hub.api.hf_hub_download(repo, "large.dat", cache_dir=hub.folder)
    assert sha256(Path(back).read_bytes()) == sha256(data)
    changed = data[: LARGE // 2] + b"something else" + data[LARGE // 2 :]
    path.write_bytes(changed)
    sent = upload()
    only_what_changed = hub.label == "newest-xet"  # the old one asks for LFS, with Xet as well
    assert sent < LARGE / 10 if only_what_changed else sent >= LARGE
    back = hub.api.hf_hub_download(repo, "large.dat", cache_dir=hub.folder)
    assert sha256(Path(back).read_bytes()) == sha256(changed)


@in_client
def test_the_same_again_sends_nothing_and_commits_nothing(hub: Hub) -> None:
    repo = hub.new("again")
    files = {**MODEL, "model.safetensors": safetensors({"w": [512, 512]}), "README.md": CARD}
    folder = hub.write(files)
    hub.api.upload_folder(repo_id=repo, folder_path=folder)
    head, before = hub.api.model_info(repo).sha, hub.received()
    told = hub.api.upload_folder(repo_id=repo, folder_path=folder)
    assert hub.api.model_info(repo).sha == told.oid == head
    assert hub.received() - before < 10_000, "names and hashes, no contents"


@in_client
def test_several_operations_are_one_commit_on_its_parent(hub: Hub) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    repo = hub.new("operations")
    weights = safetensors({"w": [64, 64]})
    first = hub.api.create_commit(
        repo,
        [
            CommitOperationAdd("a.txt", b"a"),
            CommitOperationAdd("old/b.txt", b"b"),
            CommitOperationAdd("model.safetensors", weights),
        ],
        commit_message="Begin",
    )
    second = hub.api.create_commit(
        repo,
        [
            CommitOperationAdd("a.txt", b"A"),
            CommitOperationDelete("old/", is_folder=True),
            CommitOperationCopy("model.safetensors", "copy.safetensors"),
        ],
        commit_message="Go on",
        parent_commit=first.oid,
    )
    found = read(hub.api.snapshot_download(repo, revision=second.oid, cache_dir=hub.folder))
    del found[".gitattributes"]
    assert found == {"a.txt": b"A", "model.safetensors": weights, "copy.safetensors": weights}
    with pytest.raises(HfHubHTTPError) as refused:
        hub.api.create_commit(
            repo,
            [CommitOperationAdd("a.txt", b"late")],
            commit_message="Too late",
            parent_commit=first.oid,
        )
    assert refused.value.response.status_code == 412
    assert hub.api.model_info(repo).sha == second.oid


# --- Downloading --------------------------------------------------------------------------


@in_client
def test_a_snapshot_by_branch_tag_commit_and_patterns(hub: Hub) -> None:
    repo = hub.new("snapshot")
    first = hub.api.upload_folder(repo_id=repo, folder_path=hub.write(MODEL)).oid
    hub.api.create_tag(repo, tag="good", revision=first)
    second = hub.api.upload_file(
        path_or_fileobj=b'{"n": 2}', path_in_repo="config.json", repo_id=repo
    ).oid

    def config(revision: str | None) -> bytes:
        folder = hub.api.snapshot_download(repo, revision=revision, cache_dir=hub.folder)
        return read(folder)["config.json"]

    assert config(None) == config("main") == config(second) == b'{"n": 2}'
    assert config("good") == config(first) == MODEL["config.json"]
    some = hub.folder / "some"
    hub.api.snapshot_download(
        repo, allow_patterns=["*.json"], ignore_patterns=["token*"], local_dir=some
    )
    assert set(read(some)) == {"config.json"}


@in_client
def test_what_was_downloaded_is_verified(hub: Hub) -> None:
    if not hasattr(hub.api, "verify_repo_checksums"):
        assert hub.label.startswith("oldest")  # newer clients can
        return
    repo = hub.new("verified")
    hub.api.upload_folder(repo_id=repo, folder_path=hub.write(MODEL))
    local = hub.folder / "local"
    hub.api.snapshot_download(repo, local_dir=local)
    told = hub.api.verify_repo_checksums(repo, local_dir=local)
    assert told.checked_count == len(MODEL) + 1
    assert not told.mismatches
    (local / "config.json").write_bytes(b"{}")
    (mismatch,) = hub.api.verify_repo_checksums(repo, local_dir=local).mismatches
    assert mismatch["path"] == "config.json"


# --- Deleting and moving ------------------------------------------------------------------


@in_client
def test_files_and_folders_are_deleted_and_stay_in_history(hub: Hub) -> None:
    repo = hub.new("deleting")
    files = {"a.txt": b"a", "b.log": b"b", "c/d.txt": b"d", "c/e.txt": b"e"}
    before = hub.api.upload_folder(repo_id=repo, folder_path=hub.write(files)).oid
    hub.api.delete_file("a.txt", repo)
    hub.api.delete_folder("c", repo)
    hub.api.delete_files(repo, delete_patterns=["*.log"])
    assert hub.api.list_repo_files(repo) == [".gitattributes"]
    assert files.keys() <= set(hub.api.list_repo_files(repo, revision=before))
    hub.api.upload_folder(
        repo_id=repo, folder_path=hub.write({"new.txt": b"n"}), delete_patterns=["*"]
    )
    assert "new.txt" in hub.api.list_repo_files(repo)


@in_client
def test_a_repository_is_deleted(hub: Hub) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    repo = hub.new("short-lived")
    with pytest.raises(RepositoryNotFoundError):
        hub.stranger.delete_repo(repo)
    hub.api.delete_repo(repo)
    assert not hub.api.repo_exists(repo)
    with pytest.raises(RepositoryNotFoundError):
        hub.api.delete_repo(repo)
    hub.api.delete_repo(repo, missing_ok=True)
    hub.api.create_repo(repo)  # the name is free
    assert hub.api.list_repo_files(repo) == [".gitattributes"]


@in_client
def test_a_repository_that_moved_is_found_under_its_old_name(hub: Hub) -> None:
    repo, new = hub.new("old-name"), f"team/new-name-{hub.label}"
    hub.api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo)
    hub.api.move_repo(repo, new)
    assert hub.api.model_info(new).id == new
    for name in (repo, new):
        path = hub.api.hf_hub_download(name, "x.txt", cache_dir=hub.folder)
        assert Path(path).read_bytes() == b"x"


# --- The command --------------------------------------------------------------------------


@in_client
def test_the_hf_command(hub: Hub) -> None:
    repo = f"team/command-{hub.label}"
    old = hub.label.startswith("oldest")
    repos = "repo" if old else "repos"
    hub.hf(repos, "create", repo)
    hub.hf("upload", repo, str(hub.write({**MODEL, "README.md": CARD})))
    head = hub.api.model_info(repo).sha
    assert head is not None
    hub.hf("upload", repo, str(hub.write({"one.txt": b"1"}) / "one.txt"), "sub/one.txt")
    hub.hf(repos, "tag", "create", repo, "from-command", "--revision", head)
    assert "from-command" in hub.hf(repos, "tag", "list", repo)
    local = hub.folder / "down"
    hub.hf("download", repo, "--local-dir", str(local), "--exclude", "*.md")
    assert set(read(local)) == {*MODEL, "sub/one.txt", ".gitattributes"}
    hub.hf("download", repo, "config.json", "--revision", "from-command", "--local-dir", str(local))
    assert "ada" in hub.hf("auth", "whoami")
    if old:
        hub.hf("repo-files", "delete", repo, "sub/")
        hub.api.delete_repo(repo)  # its command cannot
        return
    hub.hf("models", "info", repo)
    listed = json.loads(hub.hf("models", "list", "--author", "team", "--json"))
    assert repo in {model["id"] for model in listed}
    hub.hf(repos, "delete", repo, "--yes")
    assert not hub.api.repo_exists(repo)
