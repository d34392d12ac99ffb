"""Twenty sampled specs as the YAML of ``mlx_lm.lora``, run by its command: the same losses.

All of theirs run in one process and all of ours in this one: starting costs more than training.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlx_lm.convert import convert
from mlx_lm.models.llama import TransformerBlock

from espalier.mlxlm import differences, to_mlx_lm
from espalier.specs import TrainSpec, parse
from tests.integration.engine.child import Child

RUNS = 20
SEED = 20_261_121
LOSSES = ("train_loss", "val_loss", "learning_rate")

#: Its command as a person calls it, one config after the other. What it prints is rounded, what
#: its callbacks get is not; and grad_checkpoint patches a class for good.
_MLX_LM = """
import json, sys, mlx_lm.lora as lora
from mlx_lm.models.llama import TransformerBlock
from mlx_lm.tuner.callbacks import TrainingCallback

class Keep(TrainingCallback):
    def on_train_loss_report(self, info): found.append(info)
    def on_val_loss_report(self, info): found.append(info)

plain = TransformerBlock.__call__
lora.get_reporting_callbacks = lambda *a, **k: Keep()
every = {}
for path in sys.argv[2:]:
    found = every[path] = []
    arguments, sys.argv = sys.argv, ["mlx_lm.lora", "--config", path]
    lora.main()
    sys.argv = arguments
    TransformerBlock.__call__ = plain
json.dump(every, open(sys.argv[1], "w"))
"""


def sampled(dice: random.Random) -> dict[str, Any]:
    """Return one configuration, of all that changes what a step computes."""
    optimizer = dice.choice(["adam", "adamw", "muon", "sgd", "adafactor"])
    settings = {"adamw": {"weight_decay": 0.05, "betas": [0.9, 0.95]}, "sgd": {"momentum": 0.9}}
    rate = dice.choice([1e-4, 3e-4, 1e-3])
    schedules: list[dict[str, Any] | None] = [
        None,
        {"name": "cosine_decay", "arguments": [rate, 10, 1e-6], "warmup": 2, "warmup_init": 1e-6},
        {"name": "linear_schedule", "arguments": [rate, 1e-6, 8]},
        {"name": "step_decay", "arguments": [rate, 0.5, 2]},
        {"name": "exponential_decay", "arguments": [rate, 0.9]},
    ]
    lora: dict[str, Any] = {"rank": dice.choice([2, 4, 8]), "scale": dice.choice([5.0, 10.0, 20.0])}
    method = dice.choice(["lora", "lora", "dora", "full"])
    checkpointed = dice.random() < 0.3
    # With both, mlx-lm's second forward pass drops other values than its first: ours does not.
    if not checkpointed:
        lora["dropout"] = dice.choice([0.0, 0.1])
    if dice.random() < 0.5:
        lora["keys"] = dice.choice([["self_attn.q_proj", "self_attn.v_proj"], ["mlp.down_proj"]])
    masked = dice.random() < 0.4
    return {
        "fine_tune_type": method,
        "optimizer": optimizer,
        "optimizer_config": {optimizer: settings[optimizer]} if optimizer in settings else {},
        "learning_rate": rate,
        "lr_schedule": dice.choice(schedules),
        "lora_parameters": lora,
        "num_layers": dice.choice([-1, 1, 2]),
        "batch_size": dice.choice([2, 3, 4]),
        "grad_accumulation_steps": dice.choice([1, 1, 2]),
        "grad_checkpoint": checkpointed,
        "mask_prompt": masked,
        "max_seq_length": 2048 if masked else dice.choice([64, 256, 2048]),
        "clear_cache_threshold": dice.choice([0, "1GB"]),
        "val_batches": dice.choice([1, 2]),
        "iters": 4,
        "steps_per_report": dice.choice([1, 2, 3]),
        "steps_per_eval": dice.choice([2, 3]),
        "save_every": 3,
        "seed": dice.randrange(1000),
    }


def test_twenty_sampled_specs_lose_what_mlx_lm_loses(
    model: Path, dataset: Path, inside: Callable[..., Child], tmp_path: Path
) -> None:
    quantized = tmp_path / "quantized"
    convert(str(model), str(quantized), quantize=True, q_bits=4, q_group_size=32)
    completions = halved(dataset, tmp_path / "completions")
    dice = random.Random(SEED)
    specs = [sampled(dice) for _ in range(RUNS)]
    sets = [completions if s["mask_prompt"] else dataset for s in specs]
    bases = [quantized if s["fine_tune_type"] != "full" and n % 4 == 0 else model
             for n, s in enumerate(specs)]  # fmt: skip
    configs = []
    for number, (given, base) in enumerate(zip(specs, bases, strict=True)):
        spec = parse(TrainSpec, {"model": "t/m", "data": "t/d", "order": "mlx-lm", **given})
        assert differences(spec) == ()
        config = to_mlx_lm(
            spec,
            model=str(base),
            data=str(sets[number]),
            adapter_path=str(tmp_path / f"theirs{number}"),
        )
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(config))
        configs.append(path)
    theirs = run_theirs(configs, tmp_path / "theirs.json")
    plain = TransformerBlock.__call__
    for number, (given, base) in enumerate(zip(specs, bases, strict=True)):
        ours = inside("train", {**given, "order": "mlx-lm"}, {"model": base, "data": sets[number]})
        TransformerBlock.__call__ = plain
        assert ours.status == 0, ours.log
        for name in LOSSES:
            expected = {info["iteration"]: info[name] for info in theirs[number] if name in info}
            assert expected
            # A validation's mean is summed up in another order: equal but for float32's last bit.
            wanted = pytest.approx(expected, rel=1e-6) if name == "val_loss" else expected
            assert ours.series(name) == wanted, (number, name, given)
        mine = ours.output("adapter") / "adapters.safetensors"
        other = tmp_path / f"theirs{number}" / "adapters.safetensors"
        assert mine.read_bytes() == other.read_bytes(), (number, given)


def halved(texts: Path, directory: Path) -> Path:
    """Make rows of a prompt and a completion out of rows of text."""
    directory.mkdir()
    for path in texts.glob("*.jsonl"):
        rows = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        cut = [{"prompt": t[: len(t) // 2], "completion": t[len(t) // 2 :]} for t in rows]
        (directory / path.name).write_text("".join(json.dumps(row) + "\n" for row in cut))
    return directory


def run_theirs(configs: list[Path], report: Path) -> list[list[dict[str, Any]]]:
    """Run mlx-lm's command over every config; return what it reported of each."""
    done = subprocess.run(
        [sys.executable, "-c", _MLX_LM, str(report), *map(str, configs)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(report.read_text())
    return [found[str(path)] for path in configs]


@pytest.mark.parametrize("key", ["fine_tune_type", "optimizer", "grad_checkpoint", "mask_prompt"])
def test_the_sample_has_every_choice(key: str) -> None:
    dice = random.Random(SEED)
    found = {sampled(dice)[key] for _ in range(RUNS)}
    wanted = {"fine_tune_type": 3, "optimizer": 5}.get(key, 2)
    assert len(found) == wanted
