"""Fused and quantized models: loaded by plain mlx-lm, proved, and refused when they are no good."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.states import Reason
from tests.integration.engine.child import Child
from worker.engine import tiny

ChildRunner = Callable[..., Child]


def generate(*arguments: str | Path) -> str:
    """What plain ``mlx_lm.generate`` says, greedily."""
    prompt = ["--prompt", "table: 1-1034-2\ncolumns:", "--ignore-chat-template", "--temp", "0"]
    limits = ["--max-tokens", "24", "--verbose", "False"]
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lm", "generate", *map(str, arguments), *prompt, *limits],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_fused_is_base_and_adapter(model: Path, trained: Child, fused: Child) -> None:
    assert fused.done.state == "succeeded"
    proofs = fused.proofs()
    assert proofs["max_kl"].ok
    assert proofs["max_kl"].value < 1e-4
    assert proofs["perplexity_difference"].value < 1e-4
    rows = {row[0]: row[2] for row in fused.tables()["fuse"].rows}
    assert rows["base"] > rows["base + adapter"]  # type: ignore[operator]
    tuned = generate("--model", model, "--adapter-path", trained.output("adapter"))
    assert tuned
    assert generate("--model", fused.output("model")) == tuned


def test_quantized_loads_in_mlx_lm_and_is_measured(quantized: Child, fused: Child) -> None:
    assert quantized.done.state == "succeeded"
    directory = quantized.output("model")
    config = json.loads((directory / "config.json").read_text())
    assert config["quantization"]["bits"] == 4
    before, after = quantized.tables()["quantize"].rows
    assert before[1] == 32.0
    assert 4 < after[1] < 6.5  # type: ignore[operator]
    assert after[2] * 4 < before[2]  # type: ignore[operator]
    assert min(before[4:7] + after[4:7]) > 0  # type: ignore[type-var,operator]
    assert quantized.proofs()["perplexity_increase"].limit == 0.25
    assert quantized.proofs()["mean_kl"].ok is None
    assert generate("--model", directory)


def test_fusing_into_few_bits_loses_the_adapter_and_is_refused(
    quantized: Child, dataset: Path, inside: ChildRunner
) -> None:
    base = {"model": quantized.output("model"), "data": dataset}
    spec = {"iters": 8, "num_layers": -1, "learning_rate": 1e-3, "val_batches": 0}
    adapter = inside("train", spec, base).output("adapter")
    lost = inside("fuse", {}, base | {"adapter": adapter})
    assert lost.error.code is Reason.PROOF_FAILED
    assert "max_kl" in lost.error.message
    assert "set dequantize" in (lost.error.hint or "")
    assert lost.proofs()["adapter_retained"].ok is None
    kept = inside("fuse", {"dequantize": True}, base | {"adapter": adapter})
    assert kept.done.state == "succeeded"
    config = json.loads((kept.output("model") / "config.json").read_text())
    assert "quantization" not in config


def test_fuse_without_data_uses_the_models_own_text(
    model: Path, trained: Child, inside: ChildRunner
) -> None:
    run = inside("fuse", {}, {"model": model, "adapter": trained.output("adapter")})
    assert run.done.state == "succeeded"
    assert "sampled" in run.proofs()["max_kl"].detail


def test_a_quantized_model_is_not_quantized_again(
    quantized: Child, dataset: Path, inside: ChildRunner
) -> None:
    run = inside("quantize", {}, {"model": quantized.output("model"), "data": dataset})
    assert run.error.code is Reason.BAD_INPUT
    assert "4 bits, group 32" in run.error.message


def test_too_few_bits_are_refused(inputs: dict[str, Path], inside: ChildRunner) -> None:
    spec = {"q_bits": 2, "q_group_size": 64, "max_perplexity_increase": 0.001, "test_batches": 2}
    run = inside("quantize", spec, inputs)
    assert run.error.code is Reason.PROOF_FAILED
    assert "perplexity_increase" in run.error.message


def test_layers_no_group_divides_are_named(
    dataset: Path, inside: ChildRunner, tmp_path: Path
) -> None:
    tiny.make(tmp_path / "narrow", steps=0, hidden=96, layers=1)
    inputs = {"model": tmp_path / "narrow", "data": dataset}
    spec = {"q_bits": 8, "q_group_size": 64, "test_batches": 1, "dtype": "float16"}
    run = inside("quantize", spec, inputs)
    assert "layers keep their precision" in run.notices
    assert run.done.state == "succeeded"
    assert json.loads((run.output("model") / "config.json").read_text())["torch_dtype"] == "float16"
    tiny.make(tmp_path / "thin", steps=0, hidden=16, layers=1)
    run = inside("quantize", spec, inputs | {"model": tmp_path / "thin"})
    assert run.error.code is Reason.BAD_INPUT
    assert "q_group_size 64" in run.error.message


@pytest.mark.parametrize("bits", [3, 8])
def test_other_widths(bits: int, inputs: dict[str, Path], inside: ChildRunner) -> None:
    run = inside("quantize", {"q_bits": bits, "q_group_size": 64, "test_batches": 2}, inputs)
    assert run.done.state == "succeeded"
    assert run.proofs()["perplexity_increase"].ok
