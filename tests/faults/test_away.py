"""Workers that are away for a while: stopped as by a sleeping Mac's lid, or cut off the network.

Real stacks, real MLX. All times are the product's, made shorter by one factor each.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from espalier.client import Client
from espalier.errors import LeaseLost
from tests.acceptance.stacks import ESPALIER, PATIENCE, Up, up
from tests.faults.proxy import Proxy

#: The lease is a ninth of the product's 180 s, and longer than the 15 s in which a silent worker
#: still counts as there: as in the product, a lost job is not given back to who is silent.
FACTOR = 9
LEASE = 180 / FACTOR
SHORT = {
    "ESPALIER_LEASE_SECONDS": f"{LEASE:g}",
    "ESPALIER_REPORT_SECONDS": f"{5 / FACTOR:.3f}",
    "ESPALIER_CLAIM_TIMEOUT_SECONDS": "5",
}
#: Enough that a job still runs when it is seen at its 25th.
STEPS = 600
#: Ten minutes, by the same factor.
OUTAGE = 600 / FACTOR


def _train(stack: Up, model: Path, data: Path, name: str, iters: int, save_every: int) -> str:
    stack.run("model", "push", str(model), "team/tiny")
    stack.run("dataset", "push", str(data), "team/textsql")
    flags = (
        f"--model team/tiny --data team/textsql --name team/{name} --iters {iters}"
        f" --save-every {save_every} --num-layers -1 --batch-size 2 --learning-rate 1e-4"
        " --max-seq-length 128 --steps-per-report 1 --steps-per-eval 1000000 --val-batches 1"
    )
    return str(stack.json("train", *flags.split())["id"])


def _step(job: Any) -> int:
    return int(job["metrics"].get("step") or 0)


def _steps(stack: Up, job_id: str) -> list[int]:
    """Every step of the training's curve; step 0 is the validation before it."""
    with Client(stack.url, stack.token) as client:
        answer = client.get(f"/api/v1/jobs/{job_id}/metrics")
    return [point["step"] for point in answer["points"] if point["step"]]


def _until(stack: Up, job_id: str, condition: Callable[[Any], bool]) -> Any:
    """Look at a job until ``condition`` holds, without a process for each look."""
    deadline = time.monotonic() + PATIENCE
    with Client(stack.url, stack.token) as client:
        while not condition(job := client.get(f"/api/v1/jobs/{job_id}")):
            assert not job["finished_at"], job
            assert time.monotonic() < deadline, job
            time.sleep(0.1)  # between looks
    return job


def _types(stack: Up, job_id: str) -> list[str]:
    return [event["type"] for event in stack.json("events", job_id)["events"]]


def _family(pid: int) -> list[psutil.Process]:
    """A worker and its children; the worker first, so that it sees none of them stop."""
    worker = psutil.Process(pid)
    return [worker, *worker.children(recursive=True)]


def _pid(stack: Up, worker: str) -> int:
    return stack.pids[f"worker-{worker.removeprefix('local-')}"]


def _eventually(happened: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)  # between looks
    return found


def _owner(stack: Up, worker: str) -> dict[str, Any]:
    """What a worker has written down of the attempt that it runs."""
    number = worker.removeprefix("local-")
    folder = stack.data_dir / "workers" / number / "attempts"
    (found,) = folder.glob("*/attempt.json")
    owner: dict[str, Any] = json.loads(found.read_text())
    return owner


def test_a_worker_stopped_for_longer_than_its_lease_is_refused_afterwards(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    with up(tmp_path / "data", workers=2, settings=SHORT) as stack:
        job_id = _train(stack, tiny_model, dataset, "sleeper", STEPS, 20)
        first = _until(stack, job_id, lambda job: _step(job) >= 25)["worker"]
        stopped = _family(_pid(stack, first))
        token = stopped[0].environ()["ESPALIER_TOKEN"]
        for process in stopped:
            process.suspend()
        owner = _owner(stack, first)
        stack.run("wait", job_id)
        job = stack.job(job_id)
        assert [a["state"] for a in job["attempts"]] == ["lost", "succeeded"]
        assert job["attempts"][0]["reason"] == "lease_lost"
        assert job["worker"] != first
        outputs = job["outputs"]

        for process in reversed(stopped):
            process.resume()
        gone, alive = psutil.wait_procs(stopped[1:], timeout=PATIENCE)
        assert not alive, "its child ends"
        assert gone
        attempts = stack.data_dir / "workers" / first.removeprefix("local-") / "attempts"
        _eventually(lambda: not list(attempts.iterdir()), "what it had made is thrown out")
        # And were it to finish all the same, as the very process that held the attempt:
        late = {"boot_id": owner["boots"][0], "state": "succeeded", "outputs": []}
        with Client(stack.url, token) as client, pytest.raises(LeaseLost):
            client.post(f"/agent/v1/attempts/{owner['attempt_id']}/finish", late)
        job = stack.job(job_id)
        assert job["outputs"] == outputs, "one artifact, the other worker's"
        assert len(outputs) == 1
        assert [a["state"] for a in job["attempts"]] == ["lost", "succeeded"]
        assert _steps(stack, job_id) == list(range(1, STEPS + 1))
        assert stopped[0].is_running(), "the worker itself goes on"


def test_a_worker_stopped_for_less_than_its_lease_goes_on(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    with up(tmp_path / "data", workers=2, settings=SHORT) as stack:
        job_id = _train(stack, tiny_model, dataset, "napper", STEPS, 20)
        first = _until(stack, job_id, lambda job: _step(job) >= 25)["worker"]
        stopped = _family(_pid(stack, first))
        for process in stopped:
            process.suspend()
        time.sleep(LEASE / 3)  # the fault itself
        for process in reversed(stopped):
            process.resume()
        stack.run("wait", job_id)
        job = stack.job(job_id)
        assert [(a["state"], a["worker"]) for a in job["attempts"]] == [("succeeded", first)]
        assert len(job["outputs"]) == 1
        assert _steps(stack, job_id) == list(range(1, STEPS + 1))
        assert "lost" not in _types(stack, job_id)


def test_a_worker_that_comes_back_to_a_job_nobody_took_is_adopted(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    with up(tmp_path / "data", workers=1, settings=SHORT) as stack:
        job_id = _train(stack, tiny_model, dataset, "adopted", STEPS, 20)
        first = _until(stack, job_id, lambda job: _step(job) >= 25)["worker"]
        stopped = _family(_pid(stack, first))
        for process in stopped:
            process.suspend()
        lost = _until(stack, job_id, lambda job: job["attempts"][0]["state"] == "lost")
        assert lost["state"] == "queued"
        for process in reversed(stopped):
            process.resume()
        stack.run("wait", job_id)
        job = stack.job(job_id)
        assert [a["state"] for a in job["attempts"]] == ["succeeded"], "nothing ran twice"
        types = _types(stack, job_id)
        assert types.index("lost") < types.index("adopted")
        assert types.count("checkpoint") == len(set(_checkpoints(stack, job_id)))
        assert _steps(stack, job_id) == list(range(1, STEPS + 1))
        assert len(job["outputs"]) == 1


def _checkpoints(stack: Up, job_id: str) -> list[int]:
    events = stack.json("events", job_id)["events"]
    return [event["data"]["step"] for event in events if event["type"] == "checkpoint"]


@contextlib.contextmanager
def _outside(stack: Up, home: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of its own, outside of the stack, that reaches it at ``url``."""
    with Client(stack.url, stack.token) as client:
        invited = client.post("/api/v1/workers/join-tokens")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")}
    environment |= {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "ESPALIER_DATA_DIR": str(home / "data"),
        **SHORT,
    }
    join = [ESPALIER, "worker", "join", url, "--token", invited["token"], "--name", "far"]
    subprocess.run(join, env=environment, check=True, timeout=PATIENCE)
    worker = subprocess.Popen([ESPALIER, "worker", "run"], env=environment)
    try:
        yield worker
    finally:
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
            try:
                worker.wait(60)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def test_ten_minutes_off_the_network_lose_no_point_and_double_none(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    with up(tmp_path / "data", workers=0, settings=SHORT) as stack:
        host, port = stack.url.removeprefix("http://").split(":")
        with (
            Proxy((host, int(port))) as network,
            _outside(stack, tmp_path / "far", network.url) as worker,
        ):
            job_id = _train(stack, tiny_model, dataset, "far", 1_000_000, 200)
            _until(stack, job_id, lambda job: _step(job) >= 25)
            network.silence()  # what is on its way arrives when the cable is back: twice, and late
            before = _step(stack.job(job_id))
            time.sleep(OUTAGE / 2)  # the fault itself
            network.refuse()
            time.sleep(OUTAGE / 2)
            away = stack.job(job_id)
            assert (away["state"], away["attempts"][0]["state"]) == ("queued", "lost")
            seen = _step(away)
            network.forward()
            returned = time.time()
            after = _until(
                stack, job_id, lambda job: job["state"] == "running" and _step(job) > seen
            )
            assert worker.poll() is None
            with Client(stack.url, stack.token) as client:
                client.post(f"/api/v1/jobs/{job_id}/cancel")
            stack.run("wait", job_id, code=3)
            job = stack.job(job_id)
            assert [a["state"] for a in job["attempts"]] == ["cancelled"], "the same attempt"
            steps = _steps(stack, job_id)
            assert steps == list(range(1, steps[-1] + 1)), "none missing, none doubled"
            assert steps[-1] > before + 50, "training went on"
            assert "adopted" in _types(stack, job_id)
            checkpoints = _checkpoints(stack, job_id)
            assert checkpoints == sorted(set(checkpoints))
            print(
                f"cut off for {OUTAGE:.0f} s (10 min / {FACTOR}) at step {before}, had told"
                f" {seen}, at {_step(after)} {time.time() - returned:.0f} s after the end;"
                f" {len(steps)} points, all in order"
            )
