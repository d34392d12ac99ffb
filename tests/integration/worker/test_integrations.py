"""Metrics that are also sent elsewhere: a real process, real files, real HTTP."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event as TensorBoardEvent

from espalier.messages import MetricsEvent, NoticeEvent
from espalier.specs import TrainSpec
from tests.integration.worker.conftest import Place
from tests.integration.worker.mlflow_server import MLflowServer
from worker.integrations.run import Run
from worker.integrations.telling import Telling, environment
from worker.runner import Runner

TOKEN = "mlflow-secret"


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[MLflowServer]:
    server = MLflowServer(TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    yield server
    server.stop()


def run_of(directory: Path, *services: str, attempt: int = 1) -> Run:
    return Run(
        services=services,
        job="0123456789abcdef",
        attempt=attempt,
        name="base-sql-lora",
        project="wikisql",
        url="http://studio:8000/jobs/0123456789abcdef",
        config={"iters": 10, "lora_parameters": {"rank": 8}, "learning_rate": 1e-5},
        directory=str(directory),
    )


def send(run: Run, steps: range, state: str = "finished") -> list[str]:
    """Send a few metrics; return what the run's people were told."""
    told: list[str] = []
    telling = Telling(run, told.append)
    for step in steps:
        values = {"train_loss": 1 / step, "learning_rate": 1e-5}
        telling.hear(MetricsEvent(step=step, values=values, time=1_700_000_000.5 + step))
    telling.end(state)  # type: ignore[arg-type]
    until = time.monotonic() + 120
    while any(thread.name.startswith("integrations-") for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return told


def events(directory: Path) -> list[TensorBoardEvent]:
    """Read event files as TensorBoard does: TFRecords, each with its checksums."""
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,), head = struct.unpack("<Q", data[:8]), data[:8]
            assert struct.unpack("<I", data[8:12])[0] == masked(head)
            record, end = data[12 : 12 + length], data[12 + length : 16 + length]
            assert struct.unpack("<I", end)[0] == masked(record)
            found.append(TensorBoardEvent.FromString(record))
            data = data[16 + length :]
    return found


def masked(data: bytes) -> int:
    value = crc32c(data)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def scalars(directory: Path) -> dict[tuple[str, int], float]:
    return {
        (value.tag, event.step): value.simple_value
        for event in events(directory)
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    }


def test_tensorboard_files_hold_every_metric_and_a_further_attempt_goes_on(tmp_path: Path) -> None:
    assert send(run_of(tmp_path, "tensorboard"), range(1, 5)) == []
    folder = tmp_path / "wikisql" / "0123456789abcdef"
    assert scalars(folder)[("train_loss", 4)] == 0.25
    assert {event.wall_time for event in events(folder)} >= {1_700_000_004.5}
    time.sleep(1.1)  # the second is part of a file's name
    assert send(run_of(tmp_path, "tensorboard", attempt=2), range(3, 7)) == []
    assert {step for _, step in scalars(folder)} == set(range(1, 7))
    assert len(list(folder.iterdir())) == 2
    starts = [e.step for e in events(folder) if e.session_log.status == e.session_log.START]
    assert starts == [3], "what the second attempt takes again hides the first's"


def test_mlflow_gets_config_metrics_and_the_end_in_one_run(
    mlflow: MLflowServer, tmp_path: Path
) -> None:
    assert send(run_of(tmp_path, "mlflow"), range(1, 4), "failed") == []
    (run,) = mlflow.runs.values()
    assert run.info["status"] == "FAILED"
    assert run.info["run_name"] == "base-sql-lora"
    assert run.tags["mlflow.note.content"].endswith("/jobs/0123456789abcdef")
    assert run.params["lora_parameters"] == "{'rank': 8}"
    first = {"key": "train_loss", "value": 1.0, "timestamp": 1_700_000_001_500, "step": 1}
    assert run.metrics[0] == first
    assert send(run_of(tmp_path, "mlflow", attempt=2), range(4, 6)) == []
    assert list(mlflow.runs) == ["run0"], "the second attempt went on in the first's run"
    assert run.info["status"] == "FINISHED"
    assert [m["step"] for m in run.metrics if m["key"] == "train_loss"] == [1, 2, 3, 4, 5]


def test_what_fails_is_said_once_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    told = send(run_of(tmp_path, "mlflow", "tensorboard"), range(1, 4))
    assert len(told) == 1
    assert told[0].startswith("MLflow gets no more metrics of this run: ")
    assert len(scalars(tmp_path / "wikisql" / "0123456789abcdef")) == 6
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (unset,) = send(run_of(tmp_path, "mlflow"), range(1, 3))
    assert "MLFLOW_TRACKING_URI is ''" in unset


def test_a_wrong_key_is_told_without_the_key(
    mlflow: MLflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "not-" + TOKEN)
    (told,) = send(run_of(tmp_path, "mlflow"), range(1, 3))
    assert "401" in told
    assert TOKEN not in told


def test_our_own_secrets_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "theirs")
    given = environment()
    assert given["WANDB_API_KEY"] == "theirs"
    assert "ESPALIER_TOKEN" not in given


def test_an_attempts_metrics_arrive_and_the_attempt_does_not_wait(
    runner: Runner, place: Place, mlflow: MLflowServer, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("ESPALIER_TENSORBOARD_DIR", str(tmp_path / "boards"))
    spec = TrainSpec(
        model="team/base", data="team/data", text_feature="inputs train:7 output:2000",
        report_to="tensorboard,mlflow", project_name="wikisql",
    )  # fmt: skip
    attempt = place("", spec=spec)
    runner.run(attempt.assignment.attempt_id)
    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded", attempt.finish
    assert not [e for e in attempt.events if isinstance(e, NoticeEvent)]
    job = attempt.assignment.job_id
    until = time.monotonic() + 60
    while not any(run.info["status"] == "FINISHED" for run in list(mlflow.runs.values())):
        assert time.monotonic() < until, mlflow.runs
        time.sleep(0.05)
    (run,) = mlflow.runs.values()
    assert run.tags["espalier.job"] == job
    assert {m["step"] for m in run.metrics} == set(range(1, 8))
    assert {step for _, step in scalars(tmp_path / "boards" / "wikisql" / job)} == set(range(1, 8))


def test_wandb_keeps_a_run_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="58 MB: an extra, not what tests need")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert send(run_of(tmp_path, "wandb"), range(1, 4)) == []
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-0123456789abcdef.wandb")
    data = kept.read_bytes()
    for words in (b"train_loss", b"wikisql", b"espalier_job"):
        assert words in data


def test_swanlab_keeps_a_run_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("swanlab", reason="an extra, not what tests need")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    assert send(run_of(tmp_path, "swanlab"), range(1, 4)) == []
    (kept,) = (tmp_path / "swanlog").glob("run-*/run-*.swanlab")
    assert b"train_loss" in kept.read_bytes()
    (config,) = (tmp_path / "swanlog").glob("run-*/files/config.yaml")
    assert "espalier_job" in config.read_text()
