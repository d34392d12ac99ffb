"""A batch in parts: the same losses and weights as the whole batch's, with less held at once."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from tests.integration.engine.child import Child
from tests.integration.engine.conftest import SHORT
from worker.engine.train.step import grad_checkpoint

ChildRunner = Callable[..., Child]

#: Two updates of the weights and four steps of the data: enough for a difference to grow.
STEPS: dict[str, Any] = SHORT | {
    "iters": 6,
    "steps_per_report": 1,
    "steps_per_eval": 3,
    "save_every": 6,
    "lr_schedule": None,
    "test": True,
    "test_batches": 3,
    "lora_parameters": {"rank": 4, "dropout": 0.0, "scale": 10.0},
}


def weights(run: Child, name: str = "adapters.safetensors") -> dict[str, Any]:
    return dict(mx.load(str(run.output("adapter") / name)))


def furthest(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest difference between two adapters' weights."""
    assert first.keys() == second.keys()
    return max(float(mx.abs(first[k] - second[k]).max().item()) for k in first)


def alike(run: Child, other: Child) -> None:
    """Every loss and weight of two runs is the same, up to rounding."""
    for name in ("train_loss", "val_loss", "test_loss"):
        assert run.series(name) == pytest.approx(other.series(name), abs=1e-5), name
    tokens = [event for event in ("trained_tokens", "tokens") if run.series(event)]
    assert tokens == ["trained_tokens", "tokens"]
    for name in tokens:
        assert run.series(name) == other.series(name)
    assert furthest(weights(run), weights(other)) < 1e-4


def chat(directory: Path, rows: int = 24) -> Path:
    """Rows of very different lengths, so that parts and batch are padded differently."""
    directory.mkdir()
    rng = random.Random(5)
    lines = [
        {
            "prompt": f"What is {i}?" + " And why is that?" * rng.randint(0, 6),
            "completion": f"SELECT {i}" + f" + {i}" * rng.randint(0, 20),
        }
        for i in range(rows)
    ]
    for split in ("train", "valid", "test"):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / f"{split}.jsonl").write_text(text)
    return directory


@pytest.mark.parametrize(
    ("micro", "changes"),
    [
        (1, {}),
        (2, {"grad_accumulation_steps": 3, "optimizer": "adam"}),
        (3, {"fine_tune_type": "dora", "mask_prompt": True}),
        # Adam divides by the gradient's size, so that rounding of tiny ones shows: not for full.
        (2, {"fine_tune_type": "full", "optimizer": "sgd", "learning_rate": 1e-2}),
    ],
    ids=["one row", "accumulated", "dora, uneven, masked", "full"],
)
def test_parts_give_the_whole_batchs_numbers(
    micro: int, changes: dict[str, Any], model: Path, inside: ChildRunner, tmp_path: Path
) -> None:
    inputs = {"model": model, "data": chat(tmp_path / "chat")}
    whole = inside("train", STEPS | changes, inputs)
    parts = inside("train", STEPS | changes | {"micro_batch_size": micro}, inputs)
    alike(parts, whole)
    assert furthest(weights(whole), weights(whole, "0000006_adapters.safetensors")) == 0
    start = inside("train", STEPS | changes | {"iters": 1, "learning_rate": 1e-12}, inputs)
    assert furthest(weights(whole), weights(start)) > 1e-3, "nothing was learnt: nothing compared"


def test_recomputed_activations_give_the_same_numbers(
    inputs: dict[str, Path], inside: ChildRunner, child: ChildRunner
) -> None:
    # It patches the layer's class for good: only in a child of its own.
    plain = inside("train", STEPS | {"micro_batch_size": 2}, inputs)
    again = child("train", STEPS | {"micro_batch_size": 2, "grad_checkpoint": True}, inputs)
    alike(again, plain)


def test_recomputed_dropout_drops_the_same(inputs: dict[str, Path], child: ChildRunner) -> None:
    class Layer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = mx.arange(1.0, 65.0)
            self.dropout = nn.Dropout(0.5)

        def __call__(self, x: Any) -> Any:
            return self.dropout(self.dropout(x * self.weight))

    layer = Layer()
    layer.train()
    grad_checkpoint(layer, dropout=True)
    state = [layer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x: Any) -> Any:
        def sums(layer: Any, x: Any) -> tuple[Any, Any]:
            out = layer(x)
            return out.sum(), out

        return nn.value_and_grad(layer, sums)(layer, x)

    seen = set()
    for _ in range(4):
        (_, out), gradient = step(mx.ones(64))
        mx.eval(state)
        # A sum's gradient is what the mask let through; another mask's would be another's.
        assert (gradient["weight"] * layer.weight).tolist() == out.tolist()
        seen.add(tuple(out.tolist()))
    assert len(seen) == 4, "each step draws its own"
    dropped = SHORT | {"grad_checkpoint": True, "iters": 9, "save_every": 4}
    whole = child("train", dropped, inputs)
    resumed = child("train", dropped, inputs, resume=whole.checkpoints[4])
    assert furthest(weights(resumed), weights(whole)) == 0


def test_micro_batches_of_a_whole_batch_are_the_batch(
    inputs: dict[str, Path], trained: Child, inside: ChildRunner
) -> None:
    run = inside("train", SHORT | {"micro_batch_size": 4}, inputs)
    assert run.series("train_loss") == trained.series("train_loss")
    assert furthest(weights(run), weights(trained)) == 0
    config = json.loads((run.output("adapter") / "adapter_config.json").read_text())
    assert not {"micro_batch_size", "on_oom"} & config.keys()


def test_a_checkpoint_goes_on_in_smaller_parts(
    inputs: dict[str, Path], inside: ChildRunner
) -> None:
    """What the ladder does: optimizer, order of data and half an accumulation are carried over."""
    spec = STEPS | {"iters": 11, "save_every": 4, "grad_accumulation_steps": 3}
    whole = inside("train", spec, inputs)
    checkpoint = whole.checkpoints[4]
    assert (checkpoint / "gradients.safetensors").is_file()
    resumed = inside("train", spec | {"micro_batch_size": 1}, inputs, resume=checkpoint)
    for name in ("train_loss", "val_loss"):
        after = {step: loss for step, loss in whole.series(name).items() if step > 4}
        assert after
        assert resumed.series(name) == pytest.approx(after, abs=1e-5)
    assert furthest(weights(resumed), weights(whole)) < 1e-4


def test_parts_resumed_in_the_same_parts_are_bit_identical(
    inputs: dict[str, Path], inside: ChildRunner
) -> None:
    spec = SHORT | {"iters": 11, "save_every": 4, "micro_batch_size": 1}
    spec |= {"grad_accumulation_steps": 3}
    whole = inside("train", spec, inputs)
    resumed = inside("train", spec, inputs, resume=whole.checkpoints[4])
    assert furthest(weights(resumed), weights(whole)) == 0


@pytest.mark.parametrize("kind", ["eval", "fuse", "quantize"])
def test_measurements_do_not_depend_on_the_rows_computed_at_once(
    kind: str, inputs: dict[str, Path], trained: Child, inside: ChildRunner
) -> None:
    needs = inputs | ({} if kind == "quantize" else {"adapter": trained.output("adapter")})
    spec: dict[str, Any] = {"batch_size": 4, "test_batches": 2}
    spec |= {"q_group_size": 32, "max_perplexity_increase": 10.0} if kind == "quantize" else {}
    whole = inside(kind, spec, needs)
    parts = inside(kind, spec | {"micro_batch_size": 3}, needs)
    assert whole.done.state == parts.done.state == "succeeded"
    assert parts.series("tokens") == whole.series("tokens")
    assert parts.series("test_loss") == pytest.approx(whole.series("test_loss"), abs=1e-5)
    for name, proof in whole.proofs().items():
        assert parts.proofs()[name].value == pytest.approx(proof.value, abs=1e-4), name


#: The peak of MLX's own allocator over a run; one process each, for it only ever rises.
_PEAK = """
import sys
from pathlib import Path
from tests.integration.engine.child import run_inside
import json, mlx.core as mx
spec, model, data, directory = json.loads(sys.argv[1]), *map(Path, sys.argv[2:])
run = run_inside(directory, "train", spec, {"model": model, "data": data})
assert run.status == 0, run.log
print(mx.get_peak_memory())
"""


def peak(spec: dict[str, Any], inputs: dict[str, Path], directory: Path) -> int:
    command = [sys.executable, "-c", _PEAK, json.dumps(spec)]
    command += [str(inputs["model"]), str(inputs["data"]), str(directory)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_what_is_held_at_once_falls_with_the_rows(model: Path, tmp_path: Path) -> None:
    """Training and validation: were either computed whole, the peak would be the whole batch's."""
    data = tmp_path / "long"
    data.mkdir()
    for split in ("train", "valid"):
        text = "".join(
            json.dumps({"text": f"SELECT {i} FROM a WHERE b = {i} AND " * 20}) + "\n"
            for i in range(8)
        )
        (data / f"{split}.jsonl").write_text(text)
    spec = STEPS | {
        "iters": 1,
        "batch_size": 8,
        "max_seq_length": 256,
        "test": False,
    }
    inputs = {"model": model, "data": data}
    whole = peak(spec, inputs, tmp_path / "whole")
    parts = peak(spec | {"micro_batch_size": 1}, inputs, tmp_path / "parts")
    assert parts < 0.35 * whole, f"{parts:,} of {whole:,} bytes"
