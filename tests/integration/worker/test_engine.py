"""The runner with the real engine: a fine-tune from blobs to blobs, and its continuation."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from espalier.messages import Checkpoint, FileEntry, Input, MetricsEvent
from espalier.specs import TrainSpec
from espalier.states import ArtifactKind
from espalier.textsql import write_dataset
from espalier.transfer import scan
from espalier.vetting import vet_folder
from tests.integration.worker.conftest import Place
from tests.integration.worker.fake_control import Attempt, FakeControl
from worker.engine import tiny
from worker.runner import Runner
from worker.tools import Tools

SPEC = TrainSpec(
    model="team/base",
    data="team/data",
    iters=6,
    batch_size=2,
    num_layers=1,
    val_batches=1,
    steps_per_report=2,
    steps_per_eval=6,
    save_every=3,
    max_seq_length=64,
)


def stored(control: FakeControl, role: str, kind: ArtifactKind, directory: Path) -> Input:
    files = scan(directory)
    for entry in files:
        shutil.copy(directory / entry.path, control.store / entry.sha256)
    return Input(role=role, ref=f"team/{role}", kind=kind, commit="0" * 40, files=files)


def adapter(attempt: Attempt) -> dict[str, FileEntry]:
    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded", (attempt.finish, attempt.log)
    (output,) = [o for o in attempt.finish.outputs if o.kind is ArtifactKind.ADAPTER]
    return {entry.path: entry for entry in output.files}


@pytest.mark.slow
def test_a_fine_tune_and_its_continuation_on_another_worker(
    tools: Tools, control: FakeControl, place: Place, tmp_path: Path
) -> None:
    runner = Runner(
        replace(tools, engine="worker.engine"), tmp_path / "attempts", on_drain=lambda: None
    )
    tiny.make(tmp_path / "base", steps=0)
    write_dataset(tmp_path / "data", rows=40, seed=7)
    inputs = (
        stored(control, "model", ArtifactKind.MODEL, tmp_path / "base"),
        stored(control, "data", ArtifactKind.DATASET, tmp_path / "data"),
    )
    whole = place("", spec=SPEC, inputs=inputs)
    runner.run(whole.assignment.attempt_id)
    made = adapter(whole)
    assert "adapters.safetensors" in made
    told = [e for e in whole.events if isinstance(e, MetricsEvent) and "train_loss" in e.values]
    assert [event.step for event in told] == [2, 4, 6]
    assert ((whole.finish and whole.finish.peak_memory_bytes) or 0) > 10_000_000

    for entry in made.values():
        target = tmp_path / "adapter" / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(control.store / entry.sha256, target)
    vet_folder(tmp_path / "adapter")

    first = min(whole.checkpoints, key=lambda published: published.step)
    resume = Checkpoint(step=first.step, files=first.files)
    rest = place("", spec=SPEC, inputs=inputs, resume=resume)
    runner.run(rest.assignment.attempt_id)
    assert adapter(rest)["adapters.safetensors"] == made["adapters.safetensors"]
    assert [e.step for e in rest.events if e.type == "checkpoint"] == [
        p.step for p in whole.checkpoints if p.step > first.step
    ]
