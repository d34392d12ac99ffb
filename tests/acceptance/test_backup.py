"""A stack that runs is saved, and comes back in an empty directory: all of it, and on it goes."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from espalier.client import Client
from tests.acceptance.stacks import ESPALIER, PATIENCE, Up, up


def _espalier(*arguments: str, code: int = 0) -> str:
    """Run ``espalier …`` on this machine's own files, without a stack to talk to."""
    done = subprocess.run(
        [ESPALIER, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def _train(stack: Up, name: str, iters: int) -> str:
    flags = (
        f"--model team/tiny --data team/textsql --name team/{name} --iters {iters} --save-every 50"
        " --num-layers -1 --batch-size 2 --learning-rate 1e-4 --max-seq-length 128"
        " --steps-per-report 5 --steps-per-eval 1000 --val-batches 1"
    )
    return str(stack.json("train", *flags.split())["id"])


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _pulled(stack: Up, folder: Path) -> dict[str, Any]:
    """Pull every artifact; return what arrived."""
    found = {}
    for artifact in stack.json("artifacts")["artifacts"]:
        ref = f"{artifact['project']}/{artifact['name']}"
        stack.run("pull", ref, str(folder / artifact["name"]))
        found[ref] = _hashes(folder / artifact["name"])
    return found


def _history(stack: Up, job_id: str) -> dict[str, Any]:
    client = Client(stack.url, stack.token)
    return {
        "job": stack.job(job_id),
        "metrics": client.get(f"/api/v1/jobs/{job_id}/metrics"),
        "logs": stack.run("logs", job_id),
        "events": stack.json("events", job_id)["events"],
    }


def test_a_backup_of_a_running_stack_is_that_stack_in_another_directory(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    home, there, saved = tmp_path / "data", tmp_path / "restored", tmp_path / "backup"
    with up(home) as stack:
        stack.run("model", "push", str(tiny_model), "team/tiny")
        stack.run("dataset", "push", str(dataset), "team/textsql")
        done = _train(stack, "done", 10)
        stack.run("wait", done)
        running = _train(stack, "running", 100_000)
        waiting = _train(stack, "waiting", 10)
        stack.wait_for(running, lambda j: (j["metrics"].get("step") or 0) >= 60)
        told = json.loads(_espalier("backup", str(saved), "--data-dir", str(home), "--json"))
        assert told["blobs"] > 0
        assert told["lost"] == []
        assert stack.job(running)["state"] == "running", "nothing was stopped for it"
        before, pulled = _history(stack, done), _pulled(stack, tmp_path / "before")
        assert len(pulled) == 3
        report = json.loads(_espalier("fsck", "--deep", "--data-dir", str(home), "--json"))
        assert report["findings"] == []
        token = stack.token
        assert stack.stop() == 0

    _espalier("restore", str(saved), "--check")
    _espalier("restore", str(saved), "--data-dir", str(there))
    with up(there) as stack:
        assert _history(stack, done) == before
        assert _pulled(stack, tmp_path / "after") == pulled
        for path in (saved / "snapshots").rglob("*.json*"):
            assert token not in path.read_text(), "secrets stay where they were"
        resumed = stack.wait_for(
            running, lambda j: len(j["attempts"]) > 1 and j["state"] == "running"
        )
        assert resumed["attempts"][0]["state"] == "lost"
        stack.wait_for(running, lambda j: j["attempts"][-1]["resumed_from_step"] is not None)
        stack.run("cancel", running)
        stack.run("wait", running, code=3)
        stack.run("wait", waiting)
        assert stack.job(waiting)["state"] == "succeeded"
        report = json.loads(_espalier("fsck", "--deep", "--data-dir", str(there), "--json"))
        assert report["findings"] == []
    _espalier("restore", str(saved), "--data-dir", str(there), code=1)

    # And without the database, without a backup: the store knows what it holds.
    for path in home.glob("espalier.db*"):
        path.unlink()
    rebuilt = json.loads(_espalier("fsck", "--rebuild", "--data-dir", str(home), "--json"))
    assert rebuilt["rebuilt"]["lost"] == []
    with up(home) as stack:
        assert _pulled(stack, tmp_path / "rebuilt") == pulled
        again = _train(stack, "done", 10)
        stack.run("wait", again)
        (made,) = (output["ref"] for output in stack.job(again)["outputs"])
        assert made == "team/done@v2"
