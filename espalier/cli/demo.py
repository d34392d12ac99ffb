"""``espalier demo``: the main path, on this machine, with a model and data made on the spot."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.cli.artifacts import publish
from espalier.cli.common import FAILED, INTERRUPTED, stderr, stdout, table
from espalier.cli.follow import Interrupted, follow, view
from espalier.cli.show import Job, numbers, proof_text
from espalier.cli.stack import Options, Stack, Stopped, running
from espalier.cli.up import HostFlag, PortFlag, notify, stop_signals
from espalier.client import Client
from espalier.errors import EspalierError
from espalier.refs import parse_ref
from espalier.specs import PipelineRequest, parse
from espalier.states import ArtifactKind, JobState
from espalier.textsql import write_dataset
from espalier.transfer import scan

_ROWS = 1000
#: The tiny model learns in seconds; a real one gets mlx-lm's gentle defaults where it matters.
_TINY_TRAIN: dict[str, Any] = {
    "batch_size": 4,
    "iters": 45,
    "learning_rate": 1e-3,
    "num_layers": -1,
    "lora_parameters": {"rank": 8, "scale": 10.0},
    "max_seq_length": 256,
    "save_every": 15,
    "steps_per_report": 5,
    "steps_per_eval": 15,
    "val_batches": 5,
}
_REAL_TRAIN: dict[str, Any] = {**_TINY_TRAIN, "learning_rate": 1e-5, "num_layers": 8, "iters": 100}


@dataclass(frozen=True, slots=True)
class Made:
    """What the demo begins with: references of model and data."""

    model: str
    data: str


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop after the pipeline.")] = False,
    model: Annotated[
        str | None, typer.Option(help="A hub's model, such as Qwen/Qwen2.5-0.5B-Instruct.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where everything lives.")] = Path(".demo"),
    port: PortFlag = None,
    host: HostFlag = "127.0.0.1",
) -> None:
    """Start a stack and run train, eval, fuse, quantize and export on it, with their proofs."""
    began = time.monotonic()
    if model:
        model = model if model.startswith("hf:") else f"hf:{model}"
        parse_ref(model)
    home = data_dir.expanduser().resolve()
    options = Options(home, host, port)
    with stop_signals() as stopping, _Inputs(home / "demo", model, stopping) as inputs:
        try:
            with running(options, stopping, notify) as stack:
                notify(f"the stack is up at {stack.url}")
                code = _play(stack, inputs, stopping, began)
                if not once:
                    _stay(stack, stopping)
        except (Stopped, Interrupted):
            code = INTERRUPTED
    raise typer.Exit(code)


def _play(stack: Stack, inputs: "_Inputs", stopping: threading.Event, began: float) -> int:
    """Submit the pipeline, follow it, print its results; return the exit code."""
    with Client(stack.url, stack.token) as client:
        made = inputs.push(client)
        answer = client.post("/api/v1/pipelines", pipeline(made).model_dump(mode="json"))
        ids = [job["id"] for job in answer["jobs"]]
        jobs = follow(client, ids, view(), stopping)
    _results(jobs)
    document = verdict(jobs, made, time.monotonic() - began)
    print(json.dumps(document), flush=True)
    return 0 if document["demo"] == "ok" else FAILED


def verdict(jobs: Sequence[Job], made: Made, seconds: float) -> dict[str, Any]:
    """Return the demo's last line; it is ok when all jobs succeeded and no proof failed."""
    held = all(proof["ok"] is not False for job in jobs for proof in job["proofs"])
    good = held and all(job["state"] == JobState.SUCCEEDED for job in jobs)
    artifacts = {job["kind"]: job["outputs"][0]["ref"] for job in jobs if job["outputs"]}
    return {
        "demo": "ok" if good else "failed",
        "jobs": {job["kind"]: job["id"] for job in jobs},
        "artifacts": {"dataset": made.data, "model": made.model, **artifacts},
        "seconds": round(seconds, 1),
    }


def pipeline(made: Made) -> PipelineRequest:
    """Return train → eval sweep → fuse → quantize → export, as the form submits it."""
    tiny = not made.model.startswith("hf:")
    measured = {"data": made.data, "batch_size": 4, "max_seq_length": 256}
    steps: dict[str, dict[str, Any]] = {
        "train": {**(_TINY_TRAIN if tiny else _REAL_TRAIN), "model": made.model, "data": made.data},
        "eval": {
            **measured,
            "model": made.model,
            "adapter": "step:train",
            "sweep": True,
            "test_batches": 8,
        },
        "fuse": {**measured, "model": made.model, "adapter": "step:train"},
        "quantize": {**measured, "model": "step:fuse", "q_bits": 4, "test_batches": 8},
        "export": {"model": "step:fuse", "data": made.data, "format": "gguf", "type": "q8_0"},
    }
    names = {
        "train": "demo-adapter",
        "eval": "demo-report",
        "fuse": "demo-fused",
        "quantize": "demo-4bit",
        "export": "demo-gguf",
    }
    return parse(
        PipelineRequest,
        {
            "name": "demo",
            "steps": [
                {"step": kind, "spec": {"kind": kind, **spec}, "name": names[kind]}
                for kind, spec in steps.items()
            ],
        },
    )


def _results(jobs: Sequence[Job]) -> None:
    stdout().print()
    rows = []
    for job in jobs:
        outputs = " ".join(output["ref"] for output in job["outputs"])
        rows.append((job["kind"], job["id"], job["state"], outputs, numbers(job)))
    table(("kind", "job", "state", "output", "numbers"), rows)
    stdout().print()
    for job in jobs:
        for proof in job["proofs"]:
            stdout().print(f"{job['kind']:<9} {proof_text(proof)}")
        if job["error"]:
            stdout().print(f"{job['kind']:<9} {job['error']['message']}", markup=False)


def _stay(stack: Stack, stopping: threading.Event) -> None:
    console = stdout()
    console.print(f"\n[bold green]Espalier is up:[/] [bold]{stack.url}[/]")
    console.print(f"  sign in once   {stack.login}")
    console.print("  stop           Ctrl-C")
    stopping.wait()


class _Inputs:
    """Model and data, made while the stack starts."""

    def __init__(self, directory: Path, model: str | None, stopping: threading.Event) -> None:
        self._directory = directory
        self._model = model
        self._stopping = stopping
        self._making: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Inputs":
        self._directory.mkdir(parents=True, exist_ok=True)
        write_dataset(self._directory / "data", _ROWS)
        if self._model is None and not (self._directory / "model" / "config.json").exists():
            target = self._directory / "model"
            with (self._directory / "model.log").open("wb") as log:
                self._making = subprocess.Popen(
                    [sys.executable, "-P", "-m", "worker.engine.tiny", str(target)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        return self

    def __exit__(self, *_: object) -> None:
        if self._making is not None and self._making.poll() is None:
            self._making.kill()
            self._making.wait()

    def push(self, client: Client) -> Made:
        """Publish what was made; return the references. Raises Stopped, EspalierError."""
        data = self._publish(client, "data", ArtifactKind.DATASET, "team/text-to-sql")
        if self._model:
            return Made(self._model, data)
        while self._making is not None and self._making.poll() is None:
            if self._stopping.wait(0.1):
                raise Stopped
        if self._making is not None and self._making.returncode:
            log = (self._directory / "model.log").read_text(encoding="utf-8", errors="replace")
            raise EspalierError(f"The tiny model could not be made:\n{log[-2000:]}")
        return Made(self._publish(client, "model", ArtifactKind.MODEL, "team/tiny"), data)

    def _publish(self, client: Client, folder: str, kind: ArtifactKind, ref: str) -> str:
        entries = scan(self._directory / folder)
        version: dict[str, Any] = publish(client, self._directory / folder, entries, ref, kind)
        stderr().print(f"published {version['ref']}", style="dim", markup=False)
        return str(version["ref"])
