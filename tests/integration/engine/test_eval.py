"""Evaluation: mlx-lm's test loss, the sweep over a run's checkpoints, and the proof."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.states import Reason
from tests.integration.engine.child import Child
from worker.engine import tiny

ChildRunner = Callable[..., Child]


def test_sweep(trained: Child, inputs: dict[str, Path], child: ChildRunner) -> None:
    adapter = trained.output("adapter")
    run = child("eval", {"sweep": True, "test_batches": 3}, inputs | {"adapter": adapter})
    assert run.done.state == "succeeded"
    losses = run.series("test_loss")
    assert list(losses) == [8, 16, 24]
    rows = run.tables()["checkpoints"].rows
    assert [row[0] for row in rows] == [8, 16, 24]
    columns = run.tables()["checkpoints"].columns
    best = columns.index("best")
    assert [row[best] for row in rows].count(True) == 1
    assert min(rows, key=lambda row: row[1])[best]  # type: ignore[arg-type,return-value]
    low, high = columns.index("test_loss_low"), columns.index("test_loss_high")
    assert all(row[low] < row[1] < row[high] for row in rows)  # type: ignore[operator]
    assert run.series("best_step")[24] in losses
    assert run.series("perplexity")[24] == pytest.approx(math.exp(losses[24]))
    proof = run.proofs()["perplexity_below_base"]
    assert proof.ok
    assert proof.value == run.series("perplexity")[24]
    assert proof.limit == run.series("base_perplexity")[24]
    by_metric = {row[0]: row for row in run.tables()["metrics"].rows}
    _, base, tuned, _, _, change, fell_by, at_most = by_metric["test_loss"]
    assert (base, tuned) == (run.series("base_test_loss")[24], losses[24])
    assert change == pytest.approx(tuned - base)  # type: ignore[operator]
    assert fell_by <= change <= at_most < 0  # type: ignore[operator]
    report = json.loads((run.output("report") / "report.json").read_text())
    assert report["metrics"]["test_loss"] == losses[24]
    assert "| 24 |" in (run.output("report") / "report.md").read_text()


def test_the_loss_is_that_of_mlx_lm(
    trained: Child, inputs: dict[str, Path], inside: ChildRunner
) -> None:
    adapter = trained.output("adapter")
    spec = {"test_batches": 5, "seed": 11, "compare_base": False}
    ours = inside("eval", spec, inputs | {"adapter": adapter})
    flags = ["--test", "--test-batches", "5", "--seed", "11", "--batch-size", "4"]
    where = ["--model", inputs["model"], "--data", inputs["data"], "--adapter-path", adapter]
    theirs = subprocess.run(
        [sys.executable, "-m", "mlx_lm", "lora", *flags, *map(str, where)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"Test loss ([\d.]+), Test ppl ([\d.]+)\.", theirs.stdout)
    assert found
    assert ours.series("test_loss")[24] == pytest.approx(float(found[1]), abs=6e-4)
    assert "base_test_loss" not in ours.series("test_loss")


def test_without_an_adapter_the_model_itself_is_measured(
    inputs: dict[str, Path], inside: ChildRunner
) -> None:
    run = inside("eval", {"split": "valid", "test_batches": 2}, inputs)
    assert set(run.series("perplexity")) == {0}
    assert run.series("tokens")[0] > 100
    assert not run.proofs()


def test_what_cannot_be_measured_is_refused(
    trained: Child, inputs: dict[str, Path], inside: ChildRunner, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(inputs["data"], data)
    (data / "test.jsonl").unlink()
    run = inside("eval", {}, inputs | {"data": data})
    assert (run.error.code, "no test.jsonl" in run.error.message) == (Reason.BAD_INPUT, True)
    adapter = tmp_path / "adapter"
    shutil.copytree(trained.output("adapter"), adapter)
    (adapter / "adapters.safetensors").unlink()
    run = inside("eval", {}, inputs | {"adapter": adapter})
    assert run.error.code is Reason.BAD_INPUT
    assert "no adapters.safetensors" in run.error.message


def test_the_best_checkpoint_is_handed_out_with_all_the_others(
    trained: Child, inputs: dict[str, Path], inside: ChildRunner
) -> None:
    adapter = trained.output("adapter")
    spec = {"sweep": True, "move_best": True, "test_batches": 2, "compare_base": False}
    run = inside("eval", spec, inputs | {"adapter": adapter})
    best = int(run.series("best_step")[24])
    made = run.output("best")
    names = {path.name for path in adapter.iterdir()}
    assert {path.name for path in made.iterdir()} == names
    weights = (made / "adapters.safetensors").read_bytes()
    assert weights == (adapter / f"{best:07d}_adapters.safetensors").read_bytes()
    again = inside("eval", spec, inputs | {"adapter": made})
    assert again.series("test_loss") == run.series("test_loss")
    assert again.series("perplexity_low")[best] < again.series("perplexity")[best]


def test_a_sweep_without_checkpoints_and_an_adapter_of_another_model_are_refused(
    trained: Child, inputs: dict[str, Path], inside: ChildRunner, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained.output("adapter"), adapter)
    for path in adapter.glob("*_adapters.safetensors"):
        path.unlink()
    run = inside("eval", {"sweep": True}, inputs | {"adapter": adapter})
    assert (run.error.code, "no checkpoints" in run.error.message) == (Reason.BAD_INPUT, True)
    other = tmp_path / "other"
    tiny.make(other, steps=0, hidden=128)
    run = inside("eval", {}, inputs | {"model": other, "adapter": adapter})
    assert run.error.code is Reason.BAD_INPUT
    assert "does not fit" in run.error.message
    assert not run.series("base_test_loss"), "nothing is measured before it is refused"


def test_the_base_is_measured_as_if_there_were_no_adapter(
    trained: Child, inputs: dict[str, Path], inside: ChildRunner
) -> None:
    alone = inside("eval", {"test_batches": 2}, inputs)
    beside = inside("eval", {"test_batches": 2}, inputs | {"adapter": trained.output("adapter")})
    assert beside.series("base_test_loss")[24] == alone.series("test_loss")[0]
