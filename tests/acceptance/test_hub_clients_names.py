"""What people do with huggingface_hub, continued: names and histories, refusals, and repositories

as a file system; by the same clients (hub_client).
"""

import pytest

from tests.acceptance.hub_client import Hub, in_client, sha256
from tests.integration.web.samples import safetensors

# --- Names and histories ------------------------------------------------------------------


@in_client
def test_tags(hub: Hub) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    repo = hub.new("tags")
    head = hub.api.model_info(repo).sha
    hub.api.create_tag(repo, tag="first", tag_message="The beginning")
    hub.api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo)
    tags = {t.name: t.target_commit for t in hub.api.list_repo_refs(repo).tags}
    assert tags["first"] == head
    with pytest.raises(HfHubHTTPError) as refused:
        hub.api.create_tag(repo, tag="first")
    assert refused.value.response.status_code == 409
    hub.api.create_tag(repo, tag="first", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        hub.api.create_tag(repo, tag="second", revision="nowhere")
    hub.api.delete_tag(repo, tag="first")
    with pytest.raises(RevisionNotFoundError):
        hub.api.delete_tag(repo, tag="first")
    with pytest.raises(RevisionNotFoundError):
        hub.api.model_info(repo, revision="first")


@in_client
def test_branches(hub: Hub) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    repo = hub.new("branches")
    hub.api.create_branch(repo, branch="try")
    told = hub.api.upload_file(
        path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo, revision="try"
    )
    assert "x.txt" in hub.api.list_repo_files(repo, revision="try")
    assert "x.txt" not in hub.api.list_repo_files(repo)
    branches = {b.name: b.target_commit for b in hub.api.list_repo_refs(repo).branches}
    assert branches == {"main": hub.api.model_info(repo).sha, "try": told.oid}
    assert [c.title for c in hub.api.list_repo_commits(repo, revision="try")][1:] == [
        "initial commit"
    ]
    with pytest.raises(HfHubHTTPError) as refused:
        hub.api.create_branch(repo, branch="try")
    assert refused.value.response.status_code == 409
    hub.api.delete_branch(repo, branch="try")
    assert [b.name for b in hub.api.list_repo_refs(repo).branches] == ["main"]
    with pytest.raises(HfHubHTTPError):
        hub.api.delete_branch(repo, branch="main")


@in_client
def test_a_tree_with_folders(hub: Hub) -> None:
    from huggingface_hub.hf_api import RepoFile, RepoFolder

    repo = hub.new("tree")
    files = {"a/b/c.txt": b"c", "a/d.txt": b"d", "weights.safetensors": safetensors()}
    hub.api.upload_folder(repo_id=repo, folder_path=hub.write(files))
    top = {entry.path: type(entry) for entry in hub.api.list_repo_tree(repo)}
    assert top == {".gitattributes": RepoFile, "a": RepoFolder, "weights.safetensors": RepoFile}
    below = hub.api.list_repo_tree(repo, "a", recursive=True)
    assert {entry.path for entry in below} == {"a/b", "a/b/c.txt", "a/d.txt"}
    found = {e.path: e for e in hub.api.get_paths_info(repo, ["a", "weights.safetensors", "no"])}
    assert found.keys() == {"a", "weights.safetensors"}
    assert found["weights.safetensors"].lfs.sha256 == sha256(safetensors())


@in_client
def test_searching(hub: Hub) -> None:
    repo, data = hub.new("sought"), hub.new("sought-data", repo_type="dataset")
    sought = f"sought-{hub.label}"
    assert [m.id for m in hub.api.list_models(search=sought)] == [repo]
    assert repo in {m.id for m in hub.api.list_models(author="team")}
    assert [d.id for d in hub.api.list_datasets(search=f"sought-data-{hub.label}")] == [data]
    assert len(list(hub.api.list_models(author="team", limit=1))) == 1
    assert list(hub.stranger.list_models(search=sought)) == []


# --- Refusals -----------------------------------------------------------------------------


@in_client
def test_errors_by_type(hub: Hub) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo = hub.new("errors")
    with pytest.raises(RepositoryNotFoundError):
        hub.api.model_info("team/absent")
    with pytest.raises(RepositoryNotFoundError):
        hub.api.dataset_info(repo)  # it is a model
    with pytest.raises(RepositoryNotFoundError):
        hub.stranger.model_info(repo)
    with pytest.raises(RepositoryNotFoundError):
        hub.stranger.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=repo)
    with pytest.raises(RevisionNotFoundError):
        hub.api.model_info(repo, revision="nowhere")
    with pytest.raises(RevisionNotFoundError):
        hub.api.snapshot_download(repo, revision="nowhere", cache_dir=hub.folder)
    with pytest.raises(EntryNotFoundError):
        hub.api.hf_hub_download(repo, "absent.dat", cache_dir=hub.folder)
    with pytest.raises(EntryNotFoundError):
        list(hub.api.list_repo_tree(repo, "absent"))
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(endpoint=hub.url, token="hf_" + "0" * 40).model_info(repo)
    assert refused.value.response.status_code == 401
    assert not hub.api.file_exists(repo, "absent.dat")
    assert not hub.api.revision_exists(repo, "nowhere")


@in_client
def test_what_could_run_code_or_lies_is_refused_with_a_sentence(hub: Hub) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    repo = hub.new("refused")
    head = hub.api.model_info(repo).sha
    wrong = b"\xff" * 8 + b"{}"
    for path, data in {
        "pytorch_model.pkl": b"\x80\x04.",
        "../up.txt": b"x",
        "model.safetensors": wrong,
    }.items():
        with pytest.raises((HfHubHTTPError, ValueError)) as refused:
            hub.api.upload_file(path_or_fileobj=data, path_in_repo=path, repo_id=repo)
        assert "safetensors" in str(refused.value) or path in str(refused.value), refused.value
    assert hub.api.model_info(repo).sha == head, "nothing was stored"


# --- As files -----------------------------------------------------------------------------


@in_client
def test_a_repository_is_a_file_system(hub: Hub) -> None:
    repo = hub.new("fs")
    with hub.fs.open(f"{repo}/notes/a.txt", "w") as file:
        file.write("written through fsspec")
    with hub.fs.open(f"{repo}/notes/b.dat", "wb") as file:
        file.write(bytes(range(256)) * 100)
    assert hub.fs.ls(f"{repo}/notes", detail=False) == [
        f"{repo}/notes/a.txt",
        f"{repo}/notes/b.dat",
    ]
    assert hub.fs.read_text(f"{repo}/notes/a.txt") == "written through fsspec"
    with hub.fs.open(f"{repo}/notes/b.dat", "rb", block_size=1024) as file:
        file.seek(5000)
        assert file.read(3) == bytes([5000 % 256, 5001 % 256, 5002 % 256])
    assert hub.fs.glob(f"{repo}/**/*.dat") == [f"{repo}/notes/b.dat"]
    assert hub.fs.info(f"{repo}/notes/b.dat")["size"] == 25_600
    hub.fs.cp_file(f"{repo}/notes/b.dat", f"{repo}/copy.dat")
    assert hub.fs.exists(f"{repo}/copy.dat")
    hub.fs.rm(f"{repo}/notes", recursive=True)
    assert hub.fs.ls(repo, detail=False) == [f"{repo}/.gitattributes", f"{repo}/copy.dat"]
