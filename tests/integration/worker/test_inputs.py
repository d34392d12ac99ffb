"""The blob cache and a hub, as an attempt's inputs."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from espalier.errors import InvalidInput, NotFound
from espalier.messages import Assignment, FileEntry, Input
from espalier.specs import TrainSpec
from espalier.states import ArtifactKind, Kind
from espalier.transfer import Transfer
from tests.integration.worker.fake_control import TOKEN, FakeControl, _Quiet
from worker.cache import BlobCache, NoRoom
from worker.inputs import Inputs
from worker.stop import Stop, Stopped, Why

COMMIT = "c0ffee" + "0" * 34
KIB = 1024


def silent(moved: int) -> None:
    del moved


def blob(control: FakeControl, seed: int, size: int = 10 * KIB) -> FileEntry:
    return control.put(bytes([seed]) * size, f"{seed}.bin")


@pytest.fixture
def cache(tmp_path: Path, transfer: Transfer) -> BlobCache:
    return BlobCache(tmp_path / "blobs", 35 * KIB, transfer)


# --- The cache ----------------------------------------------------------------------------


def test_the_least_recently_used_blob_goes_first(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    entries = [blob(control, seed) for seed in range(4)]
    for number, entry in enumerate(entries[:3]):
        cache.lay_out([entry], tmp_path / f"d{number}", silent)
        (tmp_path / f"d{number}" / entry.path).unlink()  # the attempt has ended
        os.utime(cache.path(entry.sha256), (number, number))
    assert cache.has(entries[0])  # wanted again: now the youngest
    cache.lay_out([entries[3]], tmp_path / "d3", silent)
    assert [cache.has(entry) for entry in entries] == [True, False, True, True]


def test_a_blob_in_use_is_never_thrown_out(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    entries = [blob(control, seed) for seed in range(4)]
    for entry in entries:
        cache.lay_out([entry], tmp_path / "used", silent)
    assert all(cache.has(entry) for entry in entries)


def test_an_attempt_keeps_its_input_when_the_cache_loses_it(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    entry = blob(control, 1)
    cache.lay_out([entry], tmp_path / "a", silent)
    cache.path(entry.sha256).unlink()
    assert (tmp_path / "a" / entry.path).read_bytes() == bytes([1]) * entry.size
    cache.lay_out([entry], tmp_path / "b", silent)
    assert len(control.downloads) == 2


def test_a_blob_cut_short_on_disk_is_fetched_again(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    entry = blob(control, 1)
    cache.lay_out([entry], tmp_path / "a", silent)
    path = cache.path(entry.sha256)
    path.chmod(0o644)
    os.truncate(path, 5)
    cache.lay_out([entry], tmp_path / "b", silent)
    assert (tmp_path / "b" / entry.path).stat().st_size == entry.size


def test_inputs_above_the_budget_are_refused_before_anything_is_fetched(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    entries = [blob(control, seed) for seed in range(4)]
    with pytest.raises(NoRoom, match=r"40,960.*35,840") as refused:
        cache.lay_out(entries, tmp_path / "a", silent)
    assert "ESPALIER_CACHE_BYTES" in (refused.value.hint or "")
    assert control.downloads == []


def test_one_blob_under_two_names_travels_once(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    entry = blob(control, 1)
    twin = entry.model_copy(update={"path": "deep/twin.bin"})
    cache.lay_out([entry, twin], tmp_path / "a", silent)
    assert (tmp_path / "a" / "deep" / "twin.bin").stat().st_size == entry.size
    assert len(control.downloads) == 1


def test_a_path_that_leaves_the_folder_is_refused(
    cache: BlobCache, control: FakeControl, tmp_path: Path
) -> None:
    entry = blob(control, 1).model_copy(update={"path": "../x"})
    with pytest.raises(InvalidInput):
        cache.lay_out([entry], tmp_path / "a", silent)


# --- A hub --------------------------------------------------------------------------------


class FakeHub:
    """The few routes of the Hugging Face Hub that a snapshot needs, with hashes that are true."""

    def __init__(self, files: dict[str, bytes], port: int = 0) -> None:
        self.files = files
        self.fetched: list[str] = []
        self.answer = threading.Event()
        self.answer.set()
        self._server = make_server("127.0.0.1", port, self, threaded=True, request_handler=_Quiet)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.answer.set()
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        response = self._answer(Request(environ))
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        self.answer.wait(20)
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        path = request.path
        if path.startswith("/api/models/org/model/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            return _json({"id": "org/model", "sha": COMMIT, "siblings": siblings})
        if path.startswith(f"/api/models/org/model/tree/{COMMIT}"):
            return _json([_entry(name, content) for name, content in self.files.items()])
        if path.startswith(f"/org/model/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/org/model/resolve/{COMMIT}/")
            if request.method == "GET":
                self.fetched.append(name)
            content = self.files[name]
            return Response(
                content, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(content)}"'}
            )
        return Response(
            "{}", 404, {"X-Error-Code": "RepoNotFound"}, content_type="application/json"
        )


def _json(body: Any) -> Response:
    return Response(json.dumps(body), content_type="application/json")


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub(
        {
            "config.json": b'{"model_type": "llama"}',
            "tokenizer.json": b"{}",
            "pytorch_model.bin": b"pickle",
            "modeling.py": b"import os",
        }
    )
    yield hub
    hub.stop()


def from_hub(repo: str = "org/model") -> Assignment:
    model = Input(
        role="model",
        ref=f"hf:{repo}",
        kind=ArtifactKind.MODEL,
        commit=COMMIT,
        hub_repo=repo,
        hub_revision="main",
    )
    return Assignment(
        attempt_id="a",
        attempt_number=1,
        job_id="j",
        kind=Kind.TRAIN,
        spec=TrainSpec(model=f"hf:{repo}", data="team/data"),
        inputs=(model,),
        lease_seconds=60,
        report_seconds=1,
    )


def test_of_a_hub_only_data_is_fetched_and_once(
    hub: FakeHub, cache: BlobCache, tmp_path: Path
) -> None:
    inputs = Inputs(cache, tmp_path / "hub", hub.url, TOKEN)
    for _ in range(2):
        fetched = inputs.fetch(from_hub(), tmp_path / "a", Stop(), silent)
        assert sorted(p.name for p in fetched.inputs["model"].iterdir()) == [
            "config.json",
            "tokenizer.json",
        ]
    assert sorted(hub.fetched) == ["config.json", "tokenizer.json"]


def test_a_hub_model_whose_config_names_code_is_refused(
    hub: FakeHub, cache: BlobCache, tmp_path: Path
) -> None:
    hub.files["config.json"] = b'{"auto_map": {"AutoModel": "modeling.M"}}'
    with pytest.raises(InvalidInput, match="auto_map"):
        Inputs(cache, tmp_path / "hub", hub.url, TOKEN).fetch(
            from_hub(), tmp_path / "a", Stop(), silent
        )


def test_a_repository_that_is_not_there_is_told_with_its_hub(
    hub: FakeHub, cache: BlobCache, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match=f"hf:org/other from {hub.url}"):
        Inputs(cache, tmp_path / "hub", hub.url, TOKEN).fetch(
            from_hub("org/other"), tmp_path / "a", Stop(), silent
        )


def test_a_control_plane_that_is_away_is_waited_for(
    hub: FakeHub, cache: BlobCache, tmp_path: Path
) -> None:
    class Waiting(Stop):
        waits = 0

        def wait(self, seconds: float, tolerated: Why = Why.NOT) -> None:
            self.waits += 1
            if self.waits == 1:
                again.append(FakeHub(hub.files, hub.port))

    again: list[FakeHub] = []
    hub.stop()
    stop = Waiting()
    inputs = Inputs(cache, tmp_path / "hub", hub.url, TOKEN)
    fetched = inputs.fetch(from_hub(), tmp_path / "a", stop, silent)
    assert (fetched.inputs["model"] / "config.json").read_bytes() == hub.files["config.json"]
    assert stop.waits == 1
    again[0].stop()


def test_an_attempt_that_is_cancelled_does_not_wait_for_a_slow_hub(
    hub: FakeHub, cache: BlobCache, tmp_path: Path
) -> None:
    hub.answer.clear()
    stop = Stop()
    threading.Timer(0.1, stop.request, args=(Why.CANCELLED,)).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        Inputs(cache, tmp_path / "hub", hub.url, TOKEN).fetch(
            from_hub(), tmp_path / "a", stop, silent
        )
    assert time.monotonic() - began < 15
    hub.answer.set()
    for thread in threading.enumerate():
        if thread.name == "hub":  # left to itself, and it ends
            thread.join(20)
            assert not thread.is_alive()
