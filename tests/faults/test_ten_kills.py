"""One run on two workers whose child is killed -9 ten times, at random steps, and one left alone.

The real stack: scheduler, workers, checkpoints published to the store and fetched from it again.
Both runs end with the same files, to the bit.
"""

import random
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.acceptance.stacks import PATIENCE, Up, attempt_of, up

KILLS = 10
STEPS = 1500
#: All that draws or keeps something from step to step.
FLAGS = (
    "--model team/tiny --data team/textsql --num-layers -1 --max-seq-length 96 --batch-size 2"
    f" --packing --dropout 0.1 --grad-accumulation-steps 3 --optimizer adamw --iters {STEPS}"
    " --learning-rate 3e-4 --rank 4 --scale 10 --seed 5 --steps-per-report 1 --steps-per-eval 40"
    " --val-batches 2 --save-every 20 --early-stopping-patience 1000"
)
#: Steps after a kill until the next, at the most, so that all come before the end.
SPAN = STEPS // (2 * KILLS)


class Watch:
    """The run's job, over the API."""

    def __init__(self, stack: Up, job_id: str) -> None:
        self.stack = stack
        self._job = f"/api/v1/jobs/{job_id}"
        headers = {"Authorization": f"Bearer {stack.token}"}
        self._client = httpx.Client(base_url=stack.url, headers=headers, timeout=PATIENCE)

    def job(self) -> Any:
        return self._client.get(self._job).raise_for_status().json()

    def child_at(self, step: int) -> tuple[psutil.Process, str, int]:
        """Wait for the child that has got to ``step``; return it, its worker and where it is."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            job = self.job()
            assert not job["finished_at"], f"the run ended before step {step}: {job['error']}"
            reached = (job["metrics"] or {}).get("step") or 0
            attempt = job["attempts"][-1] if job["attempts"] else None
            if attempt and reached >= step and (child := self._engine(attempt["id"])):
                return child, attempt["worker"], reached
            time.sleep(0.05)  # between looks
        raise AssertionError(f"no child got to step {step}: {self.job()}")

    def _engine(self, attempt_id: str) -> psutil.Process | None:
        """Return the child that works at an attempt: a warm one waits elsewhere."""
        return next((p for p in self.stack.engines() if attempt_of(p) == attempt_id), None)


def published(job: Any) -> dict[str, str]:
    (output,) = job["outputs"]
    return {f["path"]: f["sha256"] for f in output["files"]}


def test_ten_kills_over_two_workers_change_no_bit(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    print(f"seed {seed}")
    settings = {"ESPALIER_REPORT_SECONDS": "0.2", "ESPALIER_WATCHED_REPORT_SECONDS": "0.2"}
    with up(tmp_path / "data", workers=2, settings=settings) as stack:
        stack.run("model", "push", str(tiny_model), "team/tiny")
        stack.run("dataset", "push", str(dataset), "team/textsql")
        killed = str(stack.json("train", *FLAGS.split(), "--name", "team/killed")["id"])
        watch = Watch(stack, killed)
        reached = 0
        for number in range(1, KILLS + 1):
            child, worker, reached = watch.child_at(reached + rng.randint(2, SPAN))
            child.kill()
            child.wait(PATIENCE)
            print(f"kill {number:2} at step {reached:4} on {worker}", flush=True)
        stack.run("wait", killed)
        quiet = str(stack.json("train", *FLAGS.split(), "--name", "team/quiet")["id"])
        stack.run("wait", quiet)

        job = watch.job()
        reasons = [attempt["reason"] for attempt in job["attempts"]]
        assert reasons[:-1] == ["killed"] * KILLS, reasons
        assert len({attempt["worker"] for attempt in job["attempts"]}) == 2
        assert any(attempt["resumed_from_step"] for attempt in job["attempts"])
        assert published(job) == published(stack.job(quiet))
        assert "adapters.safetensors" in published(job)
