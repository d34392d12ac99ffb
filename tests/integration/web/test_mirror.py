"""The public hub through this one: fetched once, verified, kept; here it is a second Espalier."""

import hashlib
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from espalier.messages import Assignment, Input
from espalier.specs import TrainSpec, parse
from espalier.states import ArtifactKind, Kind
from tests.integration.web.behind import FILES, WEIGHTS, Stage, staged, until
from tests.integration.web.site import MODEL, Door
from worker.cache import BlobCache
from worker.inputs import Inputs
from worker.stop import Stop


@pytest.fixture
def stage(tmp_path: Path, broker_url: str) -> Iterator[Stage]:
    with staged(tmp_path, broker_url) as stage:
        yield stage


def test_a_repository_of_the_hub_behind_is_fetched_once(stage: Stage, tmp_path: Path) -> None:
    def fetch() -> bytes:
        url = f"{stage.ours.url}/acme/tiny/resolve/main/model.safetensors"
        token = {"Authorization": f"Bearer {stage.site.ada.token}"}
        return httpx.get(url, headers=token, timeout=120).content

    stage.upstream.hold.clear()
    with ThreadPoolExecutor(3) as pool:
        cold = [pool.submit(fetch) for _ in range(3)]
        try:
            until(lambda: stage.ours.seen["GET model.safetensors"] == 3)  # and all wait for one
        finally:
            stage.upstream.hold.set()
        assert [client.result() for client in cold] == [WEIGHTS] * 3
    assert stage.upstream.seen["GET model.safetensors"] == 1
    assert stage.upstream.tokens == {f"Bearer {stage.token}"}, "nobody else's token goes there"
    assert stage.snapshot(tmp_path / "warm") == FILES
    assert stage.upstream.seen["GET model.safetensors"] == 1


def test_what_was_fetched_is_served_while_the_hub_is_away(stage: Stage, tmp_path: Path) -> None:
    commit = stage.api().model_info("acme/tiny").sha
    assert stage.snapshot(tmp_path / "before") == FILES
    stage.upstream.stop()
    assert stage.snapshot(tmp_path / "by-branch") == FILES
    assert stage.snapshot(tmp_path / "by-commit", commit) == FILES
    with pytest.raises(HfHubHTTPError, match="does not answer") as away:
        stage.api().model_info("acme/other")
    assert away.value.response.status_code == 504
    stage.upstream.start()


def test_a_broken_download_goes_on_where_it_broke(stage: Stage, tmp_path: Path) -> None:
    stage.upstream.cut_after = [700_000, 300_000]
    assert stage.snapshot(tmp_path / "x") == FILES
    assert stage.upstream.seen["GET model.safetensors"] == 3


def test_a_part_that_a_crash_left_is_continued(stage: Stage, tmp_path: Path) -> None:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    blobs = stage.site.directory / "mirror" / "blobs"
    (blobs / f"{digest}.part").write_bytes(WEIGHTS[:1_500_000])
    stage.upstream.cut_after = [len(WEIGHTS) - 1_500_000 + 1]  # the rest and no byte more
    assert stage.snapshot(tmp_path / "x") == FILES
    assert stage.upstream.seen["GET model.safetensors"] == 1


def test_wrong_bytes_reach_nobody_whole(stage: Stage, tmp_path: Path) -> None:
    stage.upstream.spoil = True
    answer = stage.site.ada.http.get(
        "/acme/tiny/resolve/main/model.safetensors",
        headers={"Authorization": f"Bearer {stage.site.ada.token}"},
    )
    with pytest.raises(Exception, match="other bytes"):
        answer.get_data()
    assert not list((stage.site.directory / "mirror" / "blobs").glob("*.part"))
    stage.upstream.spoil = False
    assert stage.snapshot(tmp_path / "x") == FILES


def test_a_worker_fetches_a_job_s_model_through_it(stage: Stage, tmp_path: Path) -> None:
    door, _ = stage.site.worker()
    inputs = Inputs(
        BlobCache(tmp_path / "blobs", 1 << 30, door.transfer),
        tmp_path / "hub",
        stage.ours.url,
        door.token,
    )
    item = Input(
        role="model",
        ref="hf:acme/tiny",
        kind=ArtifactKind.MODEL,
        commit="",
        hub_repo="acme/tiny",
        hub_revision="main",
    )
    spec = parse(TrainSpec, {"kind": "train", "model": "hf:acme/tiny", "data": "team/sql"})
    assignment = Assignment(
        attempt_id="a1", attempt_number=1, job_id="j1", kind=Kind.TRAIN, spec=spec,
        inputs=(item,), lease_seconds=60, report_seconds=1,
    )  # fmt: skip
    fetched = inputs.fetch(assignment, tmp_path / "a1", Stop(), lambda _: None)
    assert {p.name: p.read_bytes() for p in fetched.inputs["model"].iterdir()} == FILES
    assert stage.upstream.tokens == {f"Bearer {stage.token}"}
    assert HfApi(endpoint=stage.ours.url, token=door.token).model_info("acme/tiny").sha
    with pytest.raises(RepositoryNotFoundError):  # the team's own it gets by its assignments
        HfApi(endpoint=stage.ours.url, token=door.token).model_info("team/base")


@pytest.mark.parametrize(
    "path",
    [
        "/acme/tiny/resolve/main/..%2f..%2f..%2fapi%2fwhoami-v2",
        "/api/models/acme/tiny/tree/main/..%2f..%2f..%2f..%2fwhoami-v2",
        "/api/models/acme/tiny/revision/..%2f..%2f..%2fwhoami-v2",
    ],
)
def test_no_path_climbs_out_of_its_repository_upstream(stage: Stage, path: str) -> None:
    token = {"Authorization": f"Bearer {stage.site.ada.token}"}
    assert stage.site.ada.http.get(path, headers=token).status_code == 422
    assert stage.upstream.seen.total() == 0


def test_refusals_are_the_hub_s_own(stage: Stage) -> None:
    with pytest.raises(RepositoryNotFoundError):
        stage.api().model_info("acme/absent")
    with pytest.raises(HfHubHTTPError, match="not among the repositories") as refused:
        stage.api().model_info("stranger/model")
    assert refused.value.response.status_code == 403
    assert not isinstance(refused.value, GatedRepoError)
    before = stage.upstream.seen.total()
    with pytest.raises(RepositoryNotFoundError):
        stage.api().model_info("team/absent")  # a project of ours: its names stay here
    assert stage.upstream.seen.total() == before


def test_the_longest_unused_makes_room_but_never_what_a_job_needs(
    stage: Stage, tmp_path: Path
) -> None:
    def unlike(seed: int) -> bytes:
        noise = random.Random(seed).randbytes(len(WEIGHTS) - 1000)
        return WEIGHTS[:1000] + noise

    far = Door(stage.upstream.app, stage.token)
    for n in (1, 2):
        files = {**MODEL, "model.safetensors": unlike(n)}
        assert far.publish(tmp_path / f"p{n}", f"acme/m{n}", "model", files).status_code == 201

    def fetch(name: str) -> int:
        return stage.site.ada.http.get(
            f"/acme/{name}/resolve/main/model.safetensors",
            headers={"Authorization": f"Bearer {stage.site.ada.token}"},
        ).status_code

    blobs = stage.site.directory / "mirror" / "blobs"
    assert fetch("m1") == 200
    first = hashlib.sha256(unlike(1)).hexdigest()
    until((blobs / first).exists)
    os.utime(blobs / first, (0, 0))
    stage.site.with_inputs()
    spec = {"kind": "train", "model": "hf:acme/m1@main", "data": "team/sql", "iters": 10}
    job = stage.site.ada.post("/jobs", {"spec": spec})
    assert job.status_code == 201, job.json
    assert fetch("m2") == 507, "m1 is needed, and both do not fit"
    assert stage.site.ada.post(f"/jobs/{job.json['id']}/cancel").status_code == 200
    assert fetch("m2") == 200
    assert not (blobs / first).exists()
