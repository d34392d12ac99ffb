"""Pausing, resuming and making way, on a whole stack: what is made is the same to the bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.stacks import Up, up

SHORT = {"ESPALIER_REPORT_SECONDS": "1", "ESPALIER_CLAIM_TIMEOUT_SECONDS": "5"}


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, dataset: Path
) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("pauses"), settings=SHORT) as stack:
        stack.run("model", "push", str(tiny_model), "team/tiny")
        stack.run("dataset", "push", str(dataset), "team/textsql")
        yield stack


def train(stack: Up, name: str, iters: int, *more: str) -> str:
    flags = (
        f"--model team/tiny --data team/textsql --name team/{name} --iters {iters} --save-every 60"
        " --num-layers -1 --batch-size 2 --learning-rate 1e-4 --max-seq-length 128"
        " --steps-per-report 5 --steps-per-eval 1000 --val-batches 1"
    )
    return str(stack.json("train", *flags.split(), *more)["id"])


def adapter(job: Any) -> str:
    """Return the sha256 of the weights that a job made."""
    (output,) = job["outputs"]
    return next(str(f["sha256"]) for f in output["files"] if f["path"] == "adapters.safetensors")


def test_a_paused_job_frees_its_worker_and_goes_on_to_the_same_adapter(stack: Up) -> None:
    job_id, undisturbed = train(stack, "paused", 240), train(stack, "quiet", 240)
    stack.wait_for(job_id, lambda j: (j["metrics"].get("step") or 0) >= 5)
    assert "is being paused" in stack.run("pause", job_id)
    paused = stack.wait_for(job_id, lambda j: j["paused"])
    assert paused["attempts"][0]["reason"] == "paused"
    stack.run("wait", undisturbed)  # on the worker that it left, while it waits
    assert stack.job(job_id)["paused"]
    stack.run("resume", job_id)
    stack.run("wait", job_id)
    job = stack.job(job_id)
    assert job["attempts"][1]["resumed_from_step"] >= 5
    assert (job["charged"], job["lost"]) == (0, 0)
    assert adapter(job) == adapter(stack.job(undisturbed))
    types = [event["type"] for event in stack.json("events", job_id)["events"]]
    assert [t for t in types if t in ("pause_requested", "paused", "resumed")] == [
        "pause_requested",
        "paused",
        "resumed",
    ]


def test_a_job_makes_way_for_an_urgent_one_where_its_project_allows_it(stack: Up) -> None:
    patient = train(stack, "patient", 100_000, "--priority", "-5")
    stack.wait_for(patient, lambda j: (j["metrics"].get("step") or 0) >= 5)
    stack.run("project", "set", "team", "--preemptible")
    urgent = train(stack, "urgent", 20, "--priority", "5")
    stack.run("wait", urgent)
    job = stack.wait_for(patient, lambda j: len(j["attempts"]) > 1 and j["state"] == "running")
    first, second = job["attempts"]
    assert (first["reason"], first["preempted"]) == ("preempted", True)
    assert second["resumed_from_step"] >= 5
    assert (job["charged"], job["lost"]) == (0, 0)
    types = [event["type"] for event in stack.json("events", patient)["events"]]
    assert types.index("preempting") < types.index("preempted")
    stack.run("cancel", patient)
    stack.run("wait", patient, code=3)
