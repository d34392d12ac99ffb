"""Following jobs to their end, through outages, on a terminal and in a pipe."""

import threading
from typing import Any

import httpx
import pytest

from espalier.cli import follow as following
from espalier.cli.follow import Bars, Interrupted, Lines, follow
from espalier.client import Client
from espalier.errors import Unavailable


def _job(state: str, phase: str | None = None, **more: Any) -> dict[str, Any]:
    job = {"id": "j1", "kind": "train", "state": state, "phase": phase, "error": None}
    return job | {"progress": None, "metrics": {}} | more


TOLD = [
    _job("queued"),
    _job("running", "loading"),
    None,  # the control plane is away
    None,
    _job("running", "training", progress={"done": 5, "total": 10, "unit": "steps"}),
    _job("running", "training", metrics={"train_loss": 2.5, "tokens_per_second": 1234.5}),
    _job("failed", "training", error={"message": "Row 3\x1b[2J is odd."}),
]


def _client(told: list[dict[str, Any] | None]) -> Client:
    rest = iter(told)

    def answer(_request: httpx.Request) -> httpx.Response:
        job = next(rest)
        return httpx.Response(503) if job is None else httpx.Response(200, json=job)

    return Client("http://espalier.test", backoff=(), transport=httpx.MockTransport(answer))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "TICK", 0.0)


def test_a_line_for_each_change_and_none_for_an_outage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with _client(TOLD) as client:
        (ended,) = follow(client, ["j1"], Lines())
    assert ended["state"] == "failed"
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "train  j1  queued",
        "train  j1  running  loading",
        "train  j1  running  training",
        "train  j1  failed  Row 3[2J is odd.",
    ]


def test_bars_show_where_a_job_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    bars = Bars()
    with _client(TOLD[:6]) as client, pytest.raises(StopIteration):
        follow(client, ["j1"], bars)
    (task,) = bars.tasks
    assert (task.completed, task.total, task.description) == (5, 10, "training")
    assert task.fields["numbers"] == "loss 2.500  1,234 tok/s"


def test_an_outage_without_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.0)
    with _client([_job("queued"), None, None]) as client, pytest.raises(Unavailable):
        follow(client, ["j1"], Lines())


def test_nobody_has_to_wait(capsys: pytest.CaptureFixture[str]) -> None:
    stopping = threading.Event()
    stopping.set()
    with _client([_job("queued")]) as client, pytest.raises(Interrupted):
        follow(client, ["j1"], Lines(), stopping)
    assert "queued" in capsys.readouterr().err
