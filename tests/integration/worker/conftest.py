"""A worker's parts against a real HTTP server, with a real child."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from espalier.client import Client
from espalier.ids import new_id
from espalier.messages import Assignment, FileEntry, Input
from espalier.specs import TrainSpec
from espalier.states import ArtifactKind, Kind
from espalier.transfer import Transfer
from tests.integration.worker.fake_control import TOKEN, Attempt, FakeControl
from worker.cache import TRUSTED, BlobCache
from worker.control import PREFIX, Control
from worker.disk import sync
from worker.inputs import Inputs
from worker.runner import Runner
from worker.tools import Tools

ROOT = Path(__file__).parents[3]
ENGINE = "tests.integration.worker.tiny_engine"

Place = Callable[..., Attempt]


@pytest.fixture
def control(tmp_path: Path) -> Iterator[FakeControl]:
    server = FakeControl(tmp_path / "store")
    yield server
    server.stop()


@pytest.fixture
def client(control: FakeControl) -> Iterator[Client]:
    with Client(control.url, TOKEN, backoff=(0.05, 0.1)) as client:
        yield client


@pytest.fixture
def transfer(client: Client) -> Transfer:
    return Transfer(client, PREFIX, sync=sync, mode=TRUSTED)


@pytest.fixture
def tools(
    tmp_path: Path,
    control: FakeControl,
    client: Client,
    transfer: Transfer,
    monkeypatch: pytest.MonkeyPatch,
) -> Tools:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ESPALIER_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    return Tools(
        control=Control(client, new_id()),
        transfer=transfer,
        inputs=Inputs(
            BlobCache(tmp_path / "blobs", 1 << 30, transfer), tmp_path / "hub", control.url, TOKEN
        ),
        memory_limit=1 << 30,
        cancel_grace_seconds=1.0,
        engine=ENGINE,
    )


@pytest.fixture
def runner(tools: Tools, tmp_path: Path) -> Runner:
    return Runner(tools, tmp_path / "attempts", on_drain=lambda: None)


def dataset(control: FakeControl) -> Input:
    """A data set of two files, kept in the store."""
    files: tuple[FileEntry, ...] = (
        control.put(b'{"text": "a"}\n', "train.jsonl"),
        control.put(b'{"text": "b"}\n', "splits/valid.jsonl"),
    )
    return Input(
        role="data", ref="team/data", kind=ArtifactKind.DATASET, commit="0" * 40, files=files
    )


@pytest.fixture
def place(control: FakeControl) -> Place:
    """Place a train attempt whose child does what ``script`` says (tiny_engine)."""

    def place(script: str, **more: object) -> Attempt:
        given = {
            "attempt_id": new_id(),
            "attempt_number": 1,
            "job_id": new_id(),
            "kind": Kind.TRAIN,
            "spec": TrainSpec(model="team/base", data="team/data", text_feature=script),
            "inputs": (dataset(control),),
            "lease_seconds": 60.0,
            "report_seconds": control.report_seconds,
        }
        return control.place(Assignment.model_validate(given | more))

    return place
