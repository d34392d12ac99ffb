"""Writing over the Hugging Face Hub's protocol, by its own client over a socket."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfFileSystem,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from werkzeug.serving import make_server

from tests.integration.web.hubs import Hub
from tests.integration.web.site import ADAPTER, DATASET, MODEL, Site, safetensors


@pytest.fixture(scope="module")
def hub(
    migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> Iterator[Hub]:
    """One server for all of these: every test has a repository of its own."""
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


def test_a_repository_is_made_once(hub: Hub) -> None:
    api = hub.api()
    api.create_repo("team/once")
    with pytest.raises(HfHubHTTPError, match="exists already") as refused:
        api.create_repo("team/once")
    assert refused.value.response.status_code == 409
    assert api.create_repo("team/once", exist_ok=True).repo_id == "team/once"
    with pytest.raises(HfHubHTTPError, match="a dataset needs another name"):
        api.create_repo("team/once", repo_type="dataset", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="no project 'elsewhere' that you are a member"):
        api.create_repo("elsewhere/mine")
    with pytest.raises(HfHubHTTPError, match="no project 'nowhere' that you are a member"):
        api.create_repo("nowhere/mine")
    with pytest.raises(HfHubHTTPError, match="models and datasets"):
        api.create_repo("team/app", repo_type="space", space_sdk="static")
    assert api.create_repo("bare").repo_id == "team/bare", "her only project"
    assert hub.api(hub.site.admin.token).create_repo("fresh/x").repo_id == "fresh/x"
    with pytest.raises(HfHubHTTPError, match="Every repository here is private"):
        api.update_repo_settings("team/once", private=False)
    api.update_repo_settings("team/once", private=True)


def test_branches_and_tags(hub: Hub, tmp_path: Path) -> None:
    api = hub.api()
    api.create_repo("team/refs")
    first = api.upload_file(
        repo_id="team/refs", path_or_fileobj=b"# One\n", path_in_repo="README.md"
    ).oid
    api.create_branch("team/refs", branch="dev/new")
    with pytest.raises(HfHubHTTPError, match="a branch called 'dev/new' already"):
        api.create_branch("team/refs", branch="dev/new")
    api.create_branch("team/refs", branch="dev/new", exist_ok=True)
    on_dev = api.upload_file(
        repo_id="team/refs", path_or_fileobj=b"two", path_in_repo="a/b.txt", revision="dev/new"
    ).oid
    api.create_tag("team/refs", tag="release", revision="dev/new", tag_message="Out")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("team/refs", tag="release")
    with pytest.raises(HfHubHTTPError, match="reads as a version"):
        api.create_tag("team/refs", tag="v900")
    refs = api.list_repo_refs("team/refs")
    branches = {b.name: b.target_commit for b in refs.branches}
    assert branches == {"main": first, "dev/new": on_dev}
    assert {t.name: t.target_commit for t in refs.tags}.items() >= {("release", on_dev)}
    assert [c.commit_id for c in api.list_repo_commits("team/refs", revision="dev/new")][:2] == [
        on_dev,
        first,
    ]
    assert api.list_repo_commits("team/refs")[0].commit_id == first
    assert set(pulled(hub, "team/refs", tmp_path, revision="dev/new")) >= {"README.md", "a/b.txt"}
    assert "a/b.txt" not in pulled(hub, "team/refs", tmp_path)
    tree = api.list_repo_tree("team/refs", "a", revision="dev/new", expand=True)
    assert [(e.path, e.last_commit.oid) for e in tree] == [("a/b.txt", on_dev)]
    hub.site.ada.send("PUT", "/artifacts/team/refs/aliases/production", json={"version": "v1"})
    for revision, why in (("production", "is an alias"), ("release", "is no branch"),
                          ("v1", "is no branch"), (first, "is no branch")):  # fmt: skip
        with pytest.raises(HfHubHTTPError, match=why):
            api.upload_file(
                repo_id="team/refs", path_or_fileobj=b"x", path_in_repo="x", revision=revision
            )
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(
            repo_id="team/refs", path_or_fileobj=b"x", path_in_repo="x", revision="absent"
        )
    api.delete_tag("team/refs", tag="release")
    api.delete_branch("team/refs", branch="dev/new")
    for ref in ("main", "production"):
        with pytest.raises(HfHubHTTPError, match="403"):
            api.delete_branch("team/refs", branch=ref)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("team/refs", revision="dev/new")
    assert api.model_info("team/refs", revision=on_dev).sha == on_dev, "versions stay"


def test_a_commit_changes_copies_and_deletes(hub: Hub) -> None:
    api = hub.api()
    api.create_repo("team/ops")
    weights = safetensors({"w": [8, 8]})
    api.create_commit(
        "team/ops",
        [
            CommitOperationAdd("old/a.txt", b"a"),
            CommitOperationAdd("old/b.txt", b"b"),
            CommitOperationAdd("w.safetensors", weights),
        ],
        commit_message="Begin",
        commit_description="With more to say.",
    )
    last = api.create_commit(
        "team/ops",
        [
            CommitOperationDelete("old/"),
            CommitOperationCopy("w.safetensors", "copy.safetensors"),
            CommitOperationAdd("a.txt", b"changed"),
        ],
        commit_message="Change",
    )
    files = {s.rfilename for s in api.model_info("team/ops").siblings or []}
    assert files == {".gitattributes", "w.safetensors", "copy.safetensors", "a.txt"}
    messages = [(c.title, c.message) for c in api.list_repo_commits("team/ops")]
    assert messages[1] == ("Begin", "With more to say.")
    back = api.create_commit(
        "team/ops", [CommitOperationDelete("copy.safetensors")], commit_message="Back"
    )
    again = api.create_commit(
        "team/ops", [CommitOperationCopy("w.safetensors", "copy.safetensors")],
        commit_message="Change",
    )  # fmt: skip
    assert len({last.oid, back.oid, again.oid}) == 3, "earlier content is a new commit"
    with pytest.raises(EntryNotFoundError):
        api.delete_file("absent.txt", "team/ops")
    info = api.parse_safetensors_file_metadata("team/ops", "w.safetensors")
    assert info.parameter_count == {"F16": 64}


def test_what_is_in_it_decides_what_it_is(hub: Hub, tmp_path: Path) -> None:
    api = hub.api()
    api.create_repo("team/kinds")

    def add(files: dict[str, bytes], repo: str = "team/kinds", kind: str = "model") -> None:
        operations = [CommitOperationAdd(path, data) for path, data in files.items()]
        api.create_commit(repo, operations, commit_message="More", repo_type=kind)

    def told(name: str) -> dict[str, Any]:
        found: Any = hub.site.ada.get(f"/artifacts/team/{name}").json
        return {"kind": found["kind"], **found["versions"][0]}

    def document(name: str = "kinds") -> dict[str, Any]:
        return {"kind": told(name)["kind"], **told(name)["meta"]}

    assert "no config.json" in str(document()["incomplete"])
    add({"adapter_config.json": ADAPTER["adapter_config.json"]})
    assert document()["kind"] == "model"
    add({"adapter_model.safetensors": ADAPTER["adapters.safetensors"]})
    assert "espalier adapter import" in document()["incomplete"]
    add({"adapters.safetensors": ADAPTER["adapters.safetensors"]})
    assert document() == {"kind": "adapter"}
    hub.site.ada.publish(tmp_path / "n", "team/natively", "model", MODEL)
    api.create_repo("team/rows", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match=r"train.jsonl line 2, column"):
        add({"train.jsonl": DATASET["train.jsonl"][:57] + b"{not json\n"}, "team/rows", "dataset")
    spec = {"kind": "train", "model": "team/natively", "data": "team/rows", "iters": 10}
    refused = hub.site.ada.post("/jobs", {"spec": spec})
    assert refused.status_code == 422
    problem: Any = refused.json
    assert problem["errors"][0]["loc"] == ["spec", "data"]
    assert "not complete" in problem["detail"]
    add(DATASET, "team/rows", "dataset")
    assert document("rows")["dataset"]["format"] == "completions"
    add({"README.md": b"# A model\n"}, "team/natively")
    version = told("natively")
    assert (version["number"], version["meta"]) == (2, {})


def test_a_moved_repository_is_found_and_a_deleted_one_is_not(hub: Hub) -> None:
    api, admin = hub.api(), hub.api(hub.site.admin.token)
    api.create_repo("team/before")
    with pytest.raises(HfHubHTTPError, match="Only an owner of team"):
        api.move_repo("team/before", "team/after")
    admin.move_repo("team/before", "team/after")
    assert api.model_info("team/before").id == "team/after"
    done = api.upload_file(repo_id="team/before", path_or_fileobj=b"x", path_in_repo="x.txt")
    assert api.model_info("team/after").sha == done.oid
    admin.create_repo("team/taken")
    with pytest.raises(HfHubHTTPError, match="exists already"):
        admin.move_repo("team/after", "team/taken")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_repo("team/after")
    admin.delete_repo("team/after")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("team/after")
    api.create_repo("team/after")
    assert [c.title for c in api.list_repo_commits("team/after")] == ["initial commit"]


def test_lists_and_trees(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from web.hub import repos

    api = hub.api()
    names = [f"team/many-{n}" for n in range(3)]
    for name in names:
        api.create_repo(name)
    monkeypatch.setattr(repos, "LIST_PAGE", 2)
    listed = [m.id for m in api.list_models(search="team/MANY-", sort="created_at")]
    assert listed == names[::-1]
    assert [m.id for m in api.list_models(search="many-", limit=1)] == [names[2]]
    assert list(api.list_models(search="many-", filter="gguf")) == []
    full = list(api.list_models(search="many-1", full=True))
    assert [s.rfilename for s in full[0].siblings or []] == [".gitattributes"]
    files = ["a-b.txt", "a/x.txt", "a/y/z.txt", "a.txt", "b/c.txt", "Z.txt"]
    card = b"---\nlicense: mit\ntags: [sql]\npipeline_tag: text-generation\n---\n# Card\n"
    operations = [CommitOperationAdd(path, path.encode()) for path in files]
    api.create_commit(
        names[0], [*operations, CommitOperationAdd("README.md", card)], commit_message="Tree"
    )
    monkeypatch.setattr(repos, "TREE_PAGE", 2)
    everything = [e.path for e in api.list_repo_tree(names[0], recursive=True)]
    assert sorted(everything) == sorted([*files, ".gitattributes", "README.md", "a", "a/y", "b"])
    top = [e.path for e in api.list_repo_tree(names[0])]
    assert top == [".gitattributes", "README.md", "Z.txt", "a", "a-b.txt", "a.txt", "b"]
    assert [e.path for e in api.list_repo_tree(names[0], "a")] == ["a/x.txt", "a/y"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(names[0], "absent"))
    found = api.get_paths_info(names[0], ["a/y", "a/x.txt", "no"])
    assert sorted(e.path for e in found) == ["a/x.txt", "a/y"]
    info = api.model_info(names[0])
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    assert {"mlx", "model", "sql", "license:mit"} <= set(info.tags or [])
    fs = HfFileSystem(endpoint=hub.url, token=hub.site.ada.token)
    with fs.open(f"{names[0]}/deep/new.txt", "wb") as file:
        file.write(b"written")
    assert fs.cat(f"{names[0]}/deep/new.txt") == b"written"
    fs.rm(f"{names[0]}/deep/new.txt")
    assert not fs.exists(f"{names[0]}/deep/new.txt", refresh=True)
