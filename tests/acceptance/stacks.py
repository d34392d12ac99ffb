"""The product as its users have it: ``espalier up`` in a process, and ``espalier …`` beside it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ESPALIER = str(Path(sys.executable).with_name("espalier"))
#: What a tiny model on two busy cores may take; nothing here waits this long when it works.
PATIENCE = 300.0


@dataclass
class Up:
    """A running stack and its own command line."""

    process: subprocess.Popen[str]
    url: str
    token: str
    data_dir: Path
    pids: dict[str, int]

    def _espalier(self, arguments: tuple[str, ...], code: int) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ESPALIER_URL": self.url, "ESPALIER_TOKEN": self.token}
        done = subprocess.run(
            [ESPALIER, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stderr}"
        return done

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run ``espalier …`` against this stack; return what it printed."""
        return self._espalier(arguments, code).stdout

    def refused(self, *arguments: str) -> str:
        """Run what must be refused; return what it said."""
        return self._espalier(arguments, 2).stderr

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code))

    def job(self, job_id: str) -> Any:
        return self.json("job", job_id)

    def login_link(self) -> str:
        """Return a link that signs one browser in, once."""
        return str(self.json("login-link")["url"])

    def wait_for(self, job_id: str, condition: Callable[[Any], bool]) -> Any:
        """Look at a job until ``condition`` holds; fail with its log when it ends otherwise."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if condition(job):
                return job
            if job["finished_at"]:
                raise AssertionError(f"{job}\n{self.run('logs', job_id)}")
            time.sleep(0.2)  # between looks, not instead of one
        raise AssertionError(f"job {job_id} did not get there: {self.job(job_id)}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def processes(self) -> list[psutil.Process]:
        """Everything that this stack has started, its children's children too."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engines(self) -> list[psutil.Process]:
        """The children that work at an attempt; an idle one waits elsewhere."""
        return [process for process in self.processes() if attempt_of(process)]


def attempt_of(process: psutil.Process) -> str | None:
    """The attempt that an engine's process works at, None for every other process."""
    with contextlib.suppress(psutil.Error):
        if "worker.engine" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
            places = Path(process.cwd()).parts
            if "attempts" in places:
                return places[places.index("attempts") + 1]
    return None


def free_port() -> int:
    """A port of our own: stacks of tests that run side by side must not race for 8000."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def up(
    data_dir: Path, *, workers: int = 1, settings: Mapping[str, str] | None = None
) -> Iterator[Up]:
    """``espalier up --json``, stopped at the end whatever happened."""
    command = [ESPALIER, "up", "--json", "--data-dir", str(data_dir), "--workers", str(workers)]
    command += ["--port", str(free_port())]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")}
    process = subprocess.Popen(
        command,
        env={**environment, **(settings or {})},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, f"espalier up ended with {process.wait()}"
        ready = json.loads(line)
        yield Up(process, ready["url"], ready["token"], Path(ready["data_dir"]), ready["pids"])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        process.stdout.close()


def pipeline_file(path: Path, *, model: str, data: str, iters: int, name: str) -> Path:
    """Write the main job as a pipeline: train → eval → fuse → quantize → export."""
    train = {
        "kind": "train",
        "model": model,
        "data": data,
        "iters": iters,
        "num_layers": -1,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "steps_per_report": 10,
        "steps_per_eval": max(iters // 4, 10),
        "save_every": max(iters // 4, 10),
        "val_batches": 5,
        "max_seq_length": 128,
        "lora_parameters": {"rank": 8, "dropout": 0.0, "scale": 10.0},
    }
    common = {"data": data, "max_seq_length": 128}
    steps = [
        {"step": "train", "spec": train, "name": name},
        {
            "step": "eval",
            "spec": {
                "kind": "eval",
                "model": model,
                "adapter": "step:train",
                "sweep": True,
                "test_batches": 10,
                **common,
            },
        },
        {
            "step": "fuse",
            "spec": {"kind": "fuse", "model": model, "adapter": "step:train", **common},
            "name": f"{name}-fused",
        },
        {
            "step": "quantize",
            "spec": {"kind": "quantize", "model": "step:fuse", "q_bits": 4, **common},
            "name": f"{name}-q4",
        },
        {
            "step": "export",
            "spec": {"kind": "export", "model": "step:fuse", "type": "q8_0", "data": data},
            "name": f"{name}-gguf",
        },
    ]
    path.write_text(json.dumps({"name": "main", "steps": steps}))
    return path
