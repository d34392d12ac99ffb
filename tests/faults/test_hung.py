"""A real fine-tune that hangs, and one that is only slow: `espalier up`, MLX, signals."""

import json
import signal
import time
import urllib.request
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from espalier.textsql import write_dataset
from tests.acceptance.stacks import PATIENCE, Up, up

#: A first step may take as long as it likes: kernels are compiled. A second one has 4 s.
STRICT = {
    "ESPALIER_REPORT_SECONDS": "1",
    "ESPALIER_HANG_FIRST_SECONDS": "600",
    "ESPALIER_HANG_FLOOR_SECONDS": "4",
}


def _train(stack: Up, model: Path, data: Path, name: str, **flags: object) -> str:
    stack.run("model", "push", str(model), "team/tiny")
    stack.run("dataset", "push", str(data), "team/textsql")
    given = {
        "model": "team/tiny",
        "data": "team/textsql",
        "name": f"team/{name}",
        "num-layers": -1,
        "batch-size": 2,
        "learning-rate": 1e-4,
        "max-seq-length": 128,
        "steps-per-report": 5,
        "steps-per-eval": 100_000,
        "val-batches": 1,
    } | flags
    pairs = [word for flag, value in given.items() for word in (f"--{flag}", str(value))]
    return str(stack.json("train", *pairs)["id"])


def _engine(stack: Up) -> psutil.Process:
    (found,) = stack.engines()
    return found


def _adapter(job: Any) -> str:
    """The digest of the weights that a job has published."""
    (output,) = job["outputs"]
    (digest,) = [f["sha256"] for f in output["files"] if f["path"] == "adapters.safetensors"]
    return str(digest)


def test_a_stopped_child_is_found_sampled_killed_and_its_job_resumed(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    with up(tmp_path / "data", settings=STRICT) as stack:
        run = {"iters": 300, "save-every": 20}
        quiet = _train(stack, tiny_model, dataset, "quiet", **run)
        stack.run("wait", quiet)

        disturbed = _train(stack, tiny_model, dataset, "disturbed", **run)
        stack.wait_for(disturbed, lambda j: (j["metrics"].get("step") or 0) >= 45)
        engine = _engine(stack)
        engine.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        job = stack.wait_for(disturbed, lambda j: j["attempts"][0]["state"] == "failed")
        print(f"found, sampled and killed {time.monotonic() - stopped:.1f} s after it was stopped")
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE

        stack.run("wait", disturbed)
        job = stack.job(disturbed)
        first, second = job["attempts"]
        assert (first["reason"], second["state"]) == ("hung", "succeeded")
        assert second["resumed_from_step"] >= 20, "the work was not begun anew"
        assert _adapter(job) == _adapter(stack.job(quiet))

        log = stack.run("logs", disturbed, "--attempt", first["id"])
        assert "stopped by a signal" in log
        assert f"process {engine.pid} (" in log
        events = stack.json("events", disturbed)["events"]
        assert any("stopped by a signal" in str(event) for event in events)


def test_a_slow_step_is_not_killed(tmp_path: Path, tiny_model: Path) -> None:
    """Every step takes three times what an idle child is given; the CPU works all that time."""
    size = {"iters": 3, "batch-size": 200, "steps-per-report": 1}
    dataset = tmp_path / "textsql"
    write_dataset(dataset, rows=3000, seed=0)
    with up(tmp_path / "data") as stack:
        measured = _train(stack, tiny_model, dataset, "measured", **size)
        stack.run("wait", measured)
        step = min(_step_seconds(stack, measured))
    little = f"{step / 3:.2f}"
    settings = {"ESPALIER_HANG_FIRST_SECONDS": little, "ESPALIER_HANG_FLOOR_SECONDS": little}
    with up(tmp_path / "data", settings=settings) as stack:
        slow = _train(stack, tiny_model, dataset, "slow", **size)
        stack.run("wait", slow)
        (attempt,) = stack.job(slow)["attempts"]
        assert attempt["state"] == "succeeded"
        longest = max(_step_seconds(stack, slow))
        print(f"steps of up to {longest:.1f} s, {little} s for an idle child: none was killed")
        assert longest > float(little)


def _step_seconds(stack: Up, job_id: str) -> list[float]:
    """How long each step took, but for the first: from its metrics' times."""
    request = urllib.request.Request(
        f"{stack.url}/api/v1/jobs/{job_id}/metrics",
        headers={"Authorization": f"Bearer {stack.token}"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        points = json.load(answer)["points"]
    times = [datetime.fromisoformat(p["time"]) for p in points if "train_loss" in p]
    return [(after - before).total_seconds() for before, after in pairwise(times)]
