"""Two workers, one of them killed; a stack stopped and started again."""

import os
import signal
from pathlib import Path

import psutil

from tests.acceptance.stacks import Up, up

SHORT = {
    "ESPALIER_LEASE_SECONDS": "10",
    "ESPALIER_REPORT_SECONDS": "1",
    "ESPALIER_CLAIM_TIMEOUT_SECONDS": "5",
}


def _push(stack: Up, tiny_model: Path, dataset: Path) -> None:
    stack.run("model", "push", str(tiny_model), "team/tiny")
    stack.run("dataset", "push", str(dataset), "team/textsql")


def _train(stack: Up, name: str, iters: int) -> str:
    flags = (
        f"--model team/tiny --data team/textsql --name team/{name} --iters {iters} --save-every 20"
        " --num-layers -1 --batch-size 2 --learning-rate 1e-4 --max-seq-length 128"
        " --steps-per-report 5 --steps-per-eval 1000 --val-batches 1"
    )
    return str(stack.json("train", *flags.split())["id"])


def _kill_group(pid: int) -> None:
    """What `kill -9` on the whole of a worker does: itself, and the child that trains."""
    children = psutil.Process(pid).children(recursive=True)
    os.killpg(pid, signal.SIGKILL)
    for child in children:
        if child.is_running():
            child.kill()


def test_a_killed_workers_job_succeeds_on_the_other(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    with up(tmp_path / "data", workers=2, settings=SHORT) as stack:
        _push(stack, tiny_model, dataset)
        long, short = _train(stack, "long", 300), _train(stack, "short", 40)
        # The short one may have ended before anybody looks.
        first, second = (
            stack.wait_for(job_id, lambda j: j["started_at"])["worker"] for job_id in (long, short)
        )
        assert {first, second} == {"local-1", "local-2"}, "two jobs at once on two workers"
        stack.run("wait", short)
        events = stack.wait_for(long, lambda j: (j["metrics"].get("step") or 0) >= 25)
        assert events["state"] == "running"
        _kill_group(stack.pids[f"worker-{first.removeprefix('local-')}"])
        stack.run("wait", long)
        job = stack.job(long)
        assert job["state"] == "succeeded"
        assert job["worker"] == second
        ended, succeeded = job["attempts"]
        # Its supervisor starts the worker again: it says what it held, before its lease ends.
        assert ended["reason"] in ("worker_crashed", "lease_lost")
        assert succeeded["state"] == "succeeded"
        assert succeeded["resumed_from_step"] >= 20, "the work was not begun anew"


def test_cancel_ends_the_child_and_keeps_a_checkpoint(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    with up(tmp_path / "data", settings=SHORT) as stack:
        _push(stack, tiny_model, dataset)
        job_id = _train(stack, "endless", 100_000)
        stack.wait_for(job_id, lambda j: (j["metrics"].get("step") or 0) >= 5)
        stack.run("cancel", job_id)
        stack.run("wait", job_id, code=3)
        types = [e["type"] for e in stack.json("events", job_id)["events"]]
        assert "checkpoint" in types
        assert not stack.engines()


def test_a_stop_leaves_nothing_and_a_start_finds_everything(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    with up(tmp_path / "data", settings=SHORT) as stack:
        _push(stack, tiny_model, dataset)
        job_id = _train(stack, "kept", 100_000)
        stack.wait_for(job_id, lambda j: (j["metrics"].get("step") or 0) >= 5)
        processes = stack.processes()
        assert stack.stop() == 0
        gone, alive = psutil.wait_procs(processes, timeout=30)
        assert gone
        assert not alive
    with up(tmp_path / "data", settings=SHORT) as again:
        assert again.token == stack.token, "who signed in stays signed in"
        job = again.wait_for(job_id, lambda j: len(j["attempts"]) > 1 and j["state"] == "running")
        assert job["attempts"][0]["reason"] in ("worker_stopped", "lease_lost")
        assert again.json("workers")["workers"][0]["name"] == "local-1"
        again.run("pull", "team/tiny", str(tmp_path / "model"))
        again.run("cancel", job_id)
        again.run("wait", job_id, code=3)
