"""Training: mlx-lm's numbers, exact resume, cancel, and what is refused before a step is taken."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import yaml

from espalier.messages import Event, MetricsEvent
from espalier.states import Reason
from tests.integration.engine.child import Child, Run
from tests.integration.engine.conftest import SHORT

ChildRunner = Callable[..., Child]

#: What ``mlx_lm.lora`` prints is rounded to three digits; its callback is not.
_MLX_LM = """
import json, sys, types, mlx_lm.lora as lora
from mlx_lm.tuner.callbacks import TrainingCallback

class Keep(TrainingCallback):
    def on_train_loss_report(self, info): print("TRAIN", info["iteration"], info["train_loss"])
    def on_val_loss_report(self, info): print("VAL", info["iteration"], info["val_loss"])

lora.get_reporting_callbacks = lambda *a, **k: Keep()
sys.argv = ["mlx_lm.lora", "--config", sys.argv[1]]
lora.main()
"""


_LONG_PROMPT = '{"prompt": "a very long prompt about nothing", "completion": "b"}\n'


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mlx_lm_lora(config: dict[str, Any], directory: Path) -> dict[str, dict[int, float]]:
    """Run mlx-lm's own command; return its losses by step."""
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-c", _MLX_LM, str(path)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[int, float]] = {"TRAIN": {}, "VAL": {}}
    for kind, step, value in re.findall(r"^(TRAIN|VAL) (\d+) (\S+)$", done.stdout, re.M):
        found[kind][int(step)] = float(value)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "fine_tune_type": "dora",
            "grad_accumulation_steps": 3,
            "optimizer": "sgd",
            "iters": 12,
            "steps_per_eval": 6,
        },
    ],
    ids=["lora", "dora"],
)
def test_losses_are_those_of_mlx_lm(
    changes: dict[str, Any], inputs: dict[str, Path], child: ChildRunner, tmp_path: Path
) -> None:
    ours = child("train", SHORT | changes | {"order": "mlx-lm"}, inputs)
    theirs = mlx_lm_lora(
        SHORT
        | changes
        | {
            "train": True,
            "model": str(inputs["model"]),
            "data": str(inputs["data"]),
            "adapter_path": str(tmp_path / "theirs"),
            "optimizer_config": {"adamw": {}, "sgd": {}},
        },
        tmp_path,
    )
    assert len(theirs["TRAIN"]) >= 3
    assert len(theirs["VAL"]) >= 3
    assert ours.series("train_loss") == pytest.approx(theirs["TRAIN"], abs=1e-4)
    assert ours.series("val_loss") == pytest.approx(theirs["VAL"], abs=1e-4)
    assert sha256(ours.output("adapter") / "adapters.safetensors") == sha256(
        tmp_path / "theirs" / "adapters.safetensors"
    )


def test_a_run_leaves_mlx_lms_folder(trained: Child) -> None:
    adapter = trained.output("adapter")
    assert {path.name for path in adapter.iterdir()} == {
        "adapters.safetensors",
        "adapter_config.json",
        "0000008_adapters.safetensors",
        "0000016_adapters.safetensors",
        "0000024_adapters.safetensors",
    }
    text = (adapter / "adapter_config.json").read_text()
    assert str(trained.directory) not in text
    config = json.loads(text)
    assert config["lora_parameters"] == {"rank": 4, "dropout": 0.1, "scale": 10.0}
    assert config["model"] == "team/model"
    assert trained.done.state == "succeeded"
    assert "\x1b" not in trained.log
    values = [e.values for e in trained.events if isinstance(e, MetricsEvent)][1]
    assert values.keys() >= {"train_loss", "tokens_per_second", "learning_rate"}
    assert values["peak_memory_bytes"] > 1e6


def _cancel_at(step: int) -> Callable[[Run, Event], None]:
    """Cancel once the step has been reported; it ends some steps later."""

    def react(run: Run, event: Event) -> None:
        if isinstance(event, MetricsEvent) and event.step == step:
            run.order("cancel")

    return react


def test_cancelled_and_resumed_is_bit_identical(
    inputs: dict[str, Path], trained: Child, child: ChildRunner
) -> None:
    first = child("train", SHORT, inputs, on_event=_cancel_at(5))
    assert first.done.state == "cancelled"
    stopped, checkpoint = max(first.checkpoints.items())
    assert 5 <= stopped < 24
    second = child("train", SHORT, inputs, resume=checkpoint)
    assert second.done.state == "succeeded"
    assert f"step {stopped}" in second.notices
    joined = first.series("train_loss") | second.series("train_loss")
    assert joined == trained.series("train_loss")
    assert first.series("val_loss") | second.series("val_loss") == trained.series("val_loss")
    for path in trained.output("adapter").glob("*.safetensors"):
        assert sha256(second.output("adapter") / path.name) == sha256(path), path.name


def test_another_validation_cadence_trains_the_same_adapter(
    inputs: dict[str, Path], trained: Child, child: ChildRunner
) -> None:
    other = child("train", SHORT | {"steps_per_eval": 7, "val_batches": 1}, inputs)
    assert sha256(other.output("adapter") / "adapters.safetensors") == sha256(
        trained.output("adapter") / "adapters.safetensors"
    )


def test_packing_says_what_it_makes_of_the_data(
    inputs: dict[str, Path], inside: ChildRunner
) -> None:
    spec = SHORT | {"packing": True, "max_seq_length": 64, "batch_size": 2, "iters": 4}
    run = inside("train", spec, inputs)
    assert run.done.state == "succeeded"
    assert "sequences of up to 64 tokens" in run.notices
    few = inside("train", spec | {"max_seq_length": 100_000}, inputs)
    assert few.error.code is Reason.BAD_INPUT
    assert "fewer than batch_size 2" in few.error.message


def test_the_child_dies_with_its_worker(inputs: dict[str, Path], child: ChildRunner) -> None:
    hung_up = []

    def hang_up(run: Run, event: Event) -> None:
        if isinstance(event, MetricsEvent) and not hung_up:
            hung_up.append(time.monotonic())
            run.hang_up()

    ended = child("train", SHORT | {"iters": 100_000}, inputs, on_event=hang_up)
    assert ended.status == 3
    assert time.monotonic() - hung_up[0] < 60


def test_full_fine_tune_with_mask_prompt_on_chat(
    model: Path, child: ChildRunner, tmp_path: Path
) -> None:
    data = tmp_path / "chat"
    data.mkdir()
    rows = [
        {"prompt": f"What is {i} + 1?", "completion": f"SELECT {i + 1} FROM numbers"}
        for i in range(8)
    ]
    for split in ("train", "valid", "test"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    spec = SHORT | {
        "fine_tune_type": "full",
        "mask_prompt": True,
        "iters": 6,
        "num_layers": 16,
        "test": True,
        "lr_schedule": None,
    }
    run = child("train", spec, {"model": model, "data": data})
    assert "all 2 are trained" in run.notices
    assert run.done.state == "succeeded"
    assert set(run.series("test_loss")) == {6}
    losses = run.series("train_loss")
    assert losses[6] < losses[5]


@pytest.mark.parametrize(
    ("changes", "files", "says"),
    [
        ({}, {"train": '{"text": "a b"}\n{"text": \n'}, "train.jsonl line 2 is not JSON"),
        ({}, {"train": ""}, "train.jsonl has no rows"),
        ({}, {"train": None}, "no train.jsonl"),
        ({}, {"train": '{"text": "a b"}\n'}, "has 1 rows, fewer than batch_size 4"),
        ({}, {"train": '{"text": "a"}\n{"prompt": "b"}\n'}, "line 2: text is missing"),
        ({}, {"train": '{"text": "a"}\n{"text": 7}\n'}, "line 2: text is 7"),
        ({"mask_prompt": True}, {}, "masking not supported for text"),
        ({"test": True}, {"test": None}, "no test.jsonl"),
        (
            {"mask_prompt": True, "max_seq_length": 16},
            dict.fromkeys(
                ("train", "valid"),
                '{"prompt": "a very long prompt about nothing", "completion": "b"}\n' * 4,
            ),
            "line 1 leaves no target token",
        ),
        ({"lora_parameters": {"keys": ["nowhere"]}}, {}, "keys names nowhere"),
    ],
)
def test_bad_input_is_refused_before_a_step(
    changes: dict[str, Any],
    files: dict[str, str | None],
    says: str,
    inputs: dict[str, Path],
    inside: ChildRunner,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(inputs["data"], data)
    for split, text in files.items():
        path = data / f"{split}.jsonl"
        path.unlink() if text is None else path.write_text(text)
    run = inside("train", SHORT | changes, inputs | {"data": data})
    assert run.status == 1
    assert run.error.code is Reason.BAD_INPUT
    assert says in run.error.message
    assert run.error.hint
    assert not run.series("train_loss")


def test_nan_loss_is_an_error_and_saves_nothing(
    inputs: dict[str, Path], inside: ChildRunner
) -> None:
    # Weight decay beyond 1/learning_rate multiplies the weights instead of shrinking them.
    spec = SHORT | {"lr_schedule": None, "learning_rate": 1.0, "optimizer": "sgd", "save_every": 3}
    spec |= {"optimizer_config": {"sgd": {"weight_decay": 1e5}}}
    run = inside("train", spec, inputs)
    assert run.status == 1
    assert run.error.code is Reason.NAN_LOSS
    assert "learning_rate" in (run.error.hint or "")
    for directory in run.checkpoints.values():
        assert all(
            mx.isfinite(value).all().item()
            for value in mx.load(str(directory / "adapters.safetensors")).values()
        )


def test_a_model_with_code_is_refused(
    inputs: dict[str, Path], inside: ChildRunner, tmp_path: Path
) -> None:
    model = tmp_path / "evil"
    shutil.copytree(inputs["model"], model)
    (model / "modeling.py").write_text("raise SystemExit")
    run = inside("train", SHORT, inputs | {"model": model})
    assert run.error.code is Reason.BAD_INPUT
    assert "modeling.py" in run.error.message


@pytest.mark.parametrize(
    ("bits", "kind", "says"),
    [(4, "full", "4-bit model has no gradients"), (3, "dora", "DoRA on a 3-bit model")],
)
def test_what_a_quantized_base_cannot_do(
    bits: int, kind: str, says: str, inputs: dict[str, Path], inside: ChildRunner
) -> None:
    made = inside("quantize", {"q_bits": bits, "q_group_size": 32, "test_batches": 1}, inputs)
    run = inside(
        "train", SHORT | {"fine_tune_type": kind}, inputs | {"model": made.output("model")}
    )
    assert run.error.code is Reason.BAD_INPUT
    assert says in run.error.message


def test_a_quantized_base_takes_an_adapter_and_another_run_goes_on_from_it(
    quantized: Child, inputs: dict[str, Path], inside: ChildRunner
) -> None:
    base = inputs | {"model": quantized.output("model")}
    spec = SHORT | {"iters": 6, "steps_per_report": 1, "lr_schedule": None, "val_batches": 0}
    first = inside("train", spec, base)
    assert first.done.state == "succeeded"
    second = inside("train", spec, base | {"adapter": first.output("adapter")})
    assert second.series("train_loss")[1] < first.series("train_loss")[1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora_parameters": {"rank": 8}}, "does not fit"),
        ({"num_layers": 1}, "are not in the model"),
        ({"lora_parameters": {"rank": 4, "keys": ["self_attn.q_proj"]}}, "are not in the model"),
        ({"fine_tune_type": "dora"}, "down_proj.m is not in the adapter"),
    ],
)
def test_an_adapter_of_another_shape_is_refused(
    changes: dict[str, Any],
    says: str,
    trained: Child,
    inputs: dict[str, Path],
    inside: ChildRunner,
) -> None:
    run = inside("train", SHORT | changes, inputs | {"adapter": trained.output("adapter")})
    assert run.error.code is Reason.BAD_INPUT
    assert says in run.error.message
