"""Fused models: loaded by plain mlx-lm, proved, and refused when they are no good."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from espalier.states import Reason
from tests.integration.engine.child import Child

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
