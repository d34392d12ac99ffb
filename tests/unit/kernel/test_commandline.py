"""The command on a job's page says exactly what was asked for, and nothing that is a default."""

import shlex

import pytest
import yaml

from espalier.cli.submit import build
from espalier.commandline import command
from espalier.specs import EvalSpec, ExportSpec, LoraParameters, Spec, TrainSpec, parse
from espalier.states import Kind


def test_only_what_differs_is_said() -> None:
    spec = TrainSpec(model="hf:Qwen/Qwen2.5-0.5B", data="team/sql", iters=200, learning_rate=1e-4)
    assert command(spec, name="team/sql-lora") == (
        "espalier train --model hf:Qwen/Qwen2.5-0.5B --data team/sql --iters 200"
        " --learning-rate 0.0001 --name team/sql-lora"
    )


def test_switches_have_a_form_for_on_and_for_off() -> None:
    spec = EvalSpec(model="team/m", data="team/d", adapter="team/a", sweep=True, compare_base=False)
    assert command(spec, priority=5) == (
        "espalier eval --model team/m --data team/d --adapter team/a --sweep --no-compare-base"
        " --priority 5"
    )


def test_lora_parameters_are_flags_too() -> None:
    spec = TrainSpec(model="team/m", data="team/d", lora_parameters=LoraParameters(rank=16))
    assert command(spec) == "espalier train --model team/m --data team/d --rank 16"


def test_nothing_but_defaults_leaves_the_references() -> None:
    assert command(ExportSpec(model="team/m")) == "espalier export --model team/m"


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_parameters": {"rank": 16, "keys": ["self_attn.q_proj"]}},
        {"lr_schedule": {"name": "cosine_decay", "arguments": [1e-5, 100], "warmup": 10}},
        {"optimizer": "adamw", "optimizer_config": {"adamw": {"weight_decay": 0.1}}},
        {"num_layers": -1, "mask_prompt": True, "seed": 7},
        {"data": None, "hf_dataset": [{"path": "team/d", "text_feature": "article"}]},
    ],
)
def test_flags_and_yaml_together_are_the_spec_again(changes: dict[str, object]) -> None:
    spec = parse(TrainSpec, {"model": "team/m", "data": "team/d", **changes})
    assert _read(command(spec)) == spec


def _read(text: str) -> Spec:
    """Read a command as a shell and the CLI would."""
    line, _, rest = text.partition("\n")
    config = yaml.safe_load(rest.removesuffix("YAML")) if rest else {}
    words = iter(shlex.split(line.partition(" --config ")[0])[2:])
    flags: dict[str, object] = {}
    pending = None
    for word in words:
        if word.startswith("--"):
            pending = word[2:].replace("-", "_")
            flags[pending] = True
        else:
            assert pending
            flags[pending] = word
    return build(Kind.TRAIN, config, flags).spec
