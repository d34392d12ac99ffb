"""Full disks, on real ones that are small: nothing is lost, nothing is half there, all goes on.

A small tmpfs stands in for a full disk; mounting one needs root.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.stacks import ESPALIER, PATIENCE, Up, up

MIB = 1 << 20
SHORT = {
    "ESPALIER_LEASE_SECONDS": "30",
    "ESPALIER_REPORT_SECONDS": "1",
    "ESPALIER_DISK_RESERVE_BYTES": str(4 * MIB),
    # A full disk may last: the job is not set aside for it meanwhile.
    "ESPALIER_LOST_LIMIT": "1000",
}


class SmallDisk:
    """A file system of a few MiB, and a file that fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, leave: int = 0) -> None:
        """Write until ``leave`` bytes are left."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while self.free() > leave:
                file.write(bytes(min(MIB, max(self.free() - leave, 4096))))

    def make_room(self) -> None:
        self._filler.unlink()

    def free(self) -> int:
        facts = os.statvfs(self.path)
        return facts.f_bavail * facts.f_frsize


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[SmallDisk]:
    """Mount a disk of ``size`` bytes at ``path``, or skip the test where nobody may."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small disk is a tmpfs, which only root mounts, on Linux")
    path.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def _until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.2)  # between looks


def _workers_on(disk: Path, home: Path) -> None:
    """Have all that the stack's workers write on ``disk``: inputs, attempts, spools."""
    home.mkdir(mode=0o700)
    for name in ("cache", "workers"):
        (disk / name).mkdir(parents=True)
        (home / name).symlink_to(disk / name)


def _push(stack: Up, tiny_model: Path, dataset: Path) -> None:
    stack.run("model", "push", str(tiny_model), "team/tiny")
    stack.run("dataset", "push", str(dataset), "team/textsql")


def _train(stack: Up, name: str, iters: int, save_every: int) -> str:
    flags = (
        f"--model team/tiny --data team/textsql --name team/{name} --iters {iters}"
        f" --save-every {save_every} --num-layers -1 --batch-size 2 --learning-rate 1e-4"
        " --max-seq-length 128 --steps-per-report 5 --steps-per-eval 100000 --val-batches 1"
    )
    return str(stack.json("train", *flags.split())["id"])


def _fsck(stack: Up) -> Any:
    done = subprocess.run(
        [ESPALIER, "fsck", "--deep", "--json", "--data-dir", str(stack.data_dir)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return json.loads(done.stdout)


def _steps(stack: Up, job_id: str) -> list[int]:
    points = httpx.get(
        f"{stack.url}/api/v1/jobs/{job_id}/metrics",
        headers={"Authorization": f"Bearer {stack.token}"},
        timeout=60,
    ).json()["points"]
    return [point["step"] for point in points if "train_loss" in point]


# --- The control plane's disk -------------------------------------------------------------


def test_a_full_control_plane_says_so_keeps_nothing_half_and_goes_on(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    with small_disk(tmp_path / "disk", 128 * MIB) as disk:
        home = disk.path / "data"
        _workers_on(tmp_path / "another", home)
        with up(home, settings=SHORT) as stack:
            _push(stack, tiny_model, dataset)
            before = _fsck(stack)
            upload = _Upload(stack, bytes(range(256)) * (6 * MIB // 256))
            job_id = _train(stack, "patient", 60, save_every=20)
            stack.wait_for(job_id, lambda j: (j["metrics"].get("step") or 0) >= 5)

            disk.fill()
            refused = upload.send()
            _check_refusal(refused)
            _check_refusal(_Upload(stack, b"another" * MIB).begun)
            staging = home / "store" / "staging"
            assert sum(path.stat().st_size for path in staging.iterdir()) == 0
            _until(lambda: not stack.engines(), "the training to end")
            with closing(sqlite3.connect(home / "espalier.db")) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                state = "SELECT state FROM jobs WHERE id = ?"
                assert connection.execute(state, (job_id,)).fetchall() == [("running",)]

            disk.make_room()
            stack.run("wait", job_id)
            job = stack.job(job_id)
            assert [a["state"] for a in job["attempts"]] == ["succeeded"], "the worker waited"
            steps = _steps(stack, job_id)
            assert steps == sorted(set(steps))
            assert steps[-1] == 60
            assert upload.send().status_code == 204
            assert upload.complete().status_code == 200
            after = _fsck(stack)
            assert after["findings"] == []
            assert after["blobs"] > before["blobs"]
            stack.run("pull", "team/patient", str(tmp_path / "adapter"))
            assert (tmp_path / "adapter" / "adapters.safetensors").stat().st_size
            print(f"refused: {refused.json()['detail']}")


class _Upload:
    """One upload of one part, by hand: what the client would try again shows here."""

    def __init__(self, stack: Up, data: bytes) -> None:
        headers = {"Authorization": f"Bearer {stack.token}"}
        self._http = httpx.Client(base_url=f"{stack.url}/api/v1", headers=headers, timeout=120)
        self._data = data
        name = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        self.begun = self._http.post("/uploads", json=name)

    def send(self) -> httpx.Response:
        return self._http.put(f"/uploads/{self.begun.json()['upload_id']}/parts/1",
                              content=self._data)  # fmt: skip

    def complete(self) -> httpx.Response:
        return self._http.post(f"/uploads/{self.begun.json()['upload_id']}/complete")


def _check_refusal(response: httpx.Response) -> None:
    problem = response.json()
    assert response.status_code == problem["status"] == 507, problem
    assert problem["code"] == "storage_full"
    assert any(character.isdigit() for character in problem["detail"]), "it says how much is left"
    assert problem["hint"]


# --- A worker's disk ----------------------------------------------------------------------


def test_a_worker_without_room_refuses_before_it_starts_and_works_when_there_is_some(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    home = tmp_path / "data"
    with small_disk(tmp_path / "disk", 64 * MIB) as disk:
        _workers_on(disk.path, home)
        with up(home, settings=SHORT) as stack:
            _push(stack, tiny_model, dataset)
            disk.fill(leave=4 * MIB)
            job_id = _train(stack, "refused", 10, save_every=5)
            job = stack.wait_for(job_id, lambda j: _full(j))
            assert not job["attempts"][0]["resumed_from_step"]
            events = str(stack.json("events", job_id)["events"])
            assert "bytes" in events
            disk.make_room()
            stack.run("wait", job_id)
            job = stack.job(job_id)
            assert job["state"] == "succeeded"
            assert {a["reason"] for a in job["attempts"][:-1]} == {"disk_full"}
            assert _fsck(stack)["findings"] == []


def test_a_worker_whose_disk_fills_keeps_its_checkpoints_and_resumes(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    home = tmp_path / "data"
    with small_disk(tmp_path / "disk", 64 * MIB) as disk:
        _workers_on(disk.path, home)
        with up(home, settings=SHORT) as stack:
            _push(stack, tiny_model, dataset)
            job_id = _train(stack, "resumed", 200, save_every=20)
            stack.wait_for(job_id, lambda j: _checkpoints(stack, job_id))
            disk.fill()
            stack.wait_for(job_id, _full)
            disk.make_room()
            stack.run("wait", job_id)
            job = stack.job(job_id)
            assert job["state"] == "succeeded"
            assert job["attempts"][-1]["resumed_from_step"] >= 20, "the work was not begun anew"
            assert {a["reason"] for a in job["attempts"][:-1]} == {"disk_full"}
            steps = _steps(stack, job_id)
            assert steps == list(range(5, 201, 5)), "every step was told, once"
            assert _fsck(stack)["findings"] == []


def _full(job: Any) -> bool:
    return any(attempt["reason"] == "disk_full" for attempt in job["attempts"])


def _checkpoints(stack: Up, job_id: str) -> bool:
    return any(e["type"] == "checkpoint" for e in stack.json("events", job_id)["events"])
