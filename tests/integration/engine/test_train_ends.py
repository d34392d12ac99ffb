"""What a run hands out, and why it ends: best weights, early stopping, NaN, divergence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.messages import OutputEvent, ProgressEvent
from espalier.states import Reason
from tests.integration.engine.child import Child
from tests.integration.engine.conftest import SHORT
from tests.integration.engine.test_train import sha256

ChildRunner = Callable[..., Child]

#: Learns, then spoils what it has learnt: the schedule's second half is far too fast.
TURNS: dict[str, Any] = SHORT | {
    "iters": 20,
    "steps_per_eval": 4,
    "save_every": 10,
    "optimizer": "sgd",
    "lr_schedule": {"name": "step_decay", "arguments": [0.02, 12.0, 8]},
}


@pytest.fixture(scope="module")
def turned(
    model: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Child, dict[str, Path]]:
    """A run whose validation loss falls and rises again."""
    from tests.integration.engine.child import run_inside

    inputs = {"model": model, "data": dataset}
    return run_inside(tmp_path_factory.mktemp("turned"), "train", TURNS, inputs), inputs


def meta(run: Child) -> dict[str, Any]:
    (output,) = run.all(OutputEvent)
    return output.meta


def test_the_best_weights_are_handed_out_and_the_last_stay(
    turned: tuple[Child, dict[str, Path]], inside: ChildRunner
) -> None:
    run, inputs = turned
    losses = run.series("val_loss")
    assert list(losses) == [0, 4, 8, 12, 16, 20]
    best = min((step for step in losses if step), key=lambda step: losses[step])
    assert best not in (0, 20), losses
    adapter = run.output("adapter")
    assert {p.name for p in adapter.glob("*.safetensors")} == {
        "adapters.safetensors",
        "0000010_adapters.safetensors",
        "0000020_adapters.safetensors",
    }
    assert json.loads((adapter / "adapter_config.json").read_text())["step"] == best
    found = meta(run)
    assert (found["best_step"], found["best_val_loss"]) == (best, losses[best])
    assert (found["step"], found["last_step"], found["stopped_early"]) == (best, 20, False)
    assert run.series("best_step")[best] == best

    # What is handed out is what a run of so many steps ends with.
    short = inside("train", TURNS | {"iters": best, "keep": "last"}, inputs)
    assert sha256(short.output("adapter") / "adapters.safetensors") == sha256(
        adapter / "adapters.safetensors"
    )
    last = inside("train", TURNS | {"keep": "last"}, inputs).output("adapter")
    assert sha256(last / "adapters.safetensors") == sha256(adapter / "0000020_adapters.safetensors")
    assert sha256(last / f"{best:07d}_adapters.safetensors") == sha256(
        adapter / "adapters.safetensors"
    )


def test_a_run_stops_early_and_goes_on_to_the_same_stop(
    turned: tuple[Child, dict[str, Path]], inside: ChildRunner
) -> None:
    whole, inputs = turned
    losses = whole.series("val_loss")
    best = meta(whole)["best_step"]
    spec = TURNS | {"early_stopping_patience": 1, "iters": 1000, "save_every": 2, "test": True}
    run = inside("train", spec, inputs)
    assert run.done.state == "succeeded"
    stop = best + 4
    assert f"Stopped early after step {stop} of 1000" in run.notices
    assert run.series("val_loss") == {k: v for k, v in losses.items() if k <= stop}
    assert meta(run)["stopped_early"]
    assert meta(run)["last_step"] == stop
    assert list(run.series("test_loss")) == [best], "what is handed out is what is tested"
    steps = [e for e in run.all(ProgressEvent) if e.unit == "steps"]
    assert (steps[-1].done, steps[-1].total) == (stop, stop)
    weights = sha256(whole.output("adapter") / "adapters.safetensors")
    assert sha256(run.output("adapter") / "adapters.safetensors") == weights

    for step in (best, best + 2, stop):
        resumed = inside("train", spec, inputs, resume=run.checkpoints[step])
        assert f"Stopped early after step {stop}" in resumed.notices
        assert sha256(resumed.output("adapter") / "adapters.safetensors") == weights
        assert meta(resumed) == meta(run)


def test_broken_weights_are_never_kept(inputs: dict[str, Path], inside: ChildRunner) -> None:
    """Step 5's loss is sound and its update is not: the checkpoint of step 5 would hold NaN."""
    spec = SHORT | {"lr_schedule": None, "learning_rate": 1e-4, "optimizer": "sgd"}
    spec |= {"save_every": 1, "iters": 8, "val_batches": 0}
    sound = inside("train", spec, inputs)
    # The fifth step's learning rate is infinite.
    spec |= {"lr_schedule": {"name": "step_decay", "arguments": [1e-4, 1e60, 4]}}
    run = inside("train", spec, inputs)
    assert run.error.code is Reason.NAN_LOSS
    assert "NaN or infinite in step 5" in run.error.message
    assert "that of step 4" in run.error.message
    assert max(run.checkpoints) == 4
    for step, directory in run.checkpoints.items():
        assert sha256(directory / "adapters.safetensors") == sha256(
            sound.checkpoints[step] / "adapters.safetensors"
        )


def test_a_diverging_run_is_stopped_with_its_last_good_checkpoint(
    inputs: dict[str, Path], inside: ChildRunner
) -> None:
    """Step 27 spoils the weights; the loss stays finite."""
    spec = SHORT | {"iters": 400, "save_every": 13, "val_batches": 0, "optimizer": "sgd"}
    spec |= {"lr_schedule": {"name": "step_decay", "arguments": [0.01, 3e4, 26]}, "batch_size": 1}
    run = inside("train", spec, inputs)
    assert run.error.code is Reason.DIVERGED
    assert "has diverged by step" in run.error.message
    assert "divergence_limit 3" in run.error.message
    assert max(run.checkpoints) == 26, "nothing was kept of what had diverged"
    assert "that of step 26" in run.error.message
