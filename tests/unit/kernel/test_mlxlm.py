"""Every key of the installed mlx-lm: honoured, or refused with the way out; and back again."""

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import InvalidInput
from espalier.mlxlm import KEYS, by_hand, differences, to_mlx_lm
from espalier.specs import TrainSpec, from_mlx_lm, parse
from espalier.specs.collection import HubData, parts
from espalier.specs.foreign import ELSEWHERE
from espalier.specs.optimizers import SCHEDULES, SETTINGS
from espalier.yamlfile import parse_yaml
from tests.unit.kernel.mlx_lm_defaults import LORA_DEFAULTS

SPEC = {"model": "team/base", "data": "team/sql"}
#: Keys that a YAML file of mlx-lm may hold beside CONFIG_DEFAULTS (LORA.md, tuner/datasets.py).
YAML_ONLY = {
    "hf_dataset", "prompt_feature", "completion_feature", "text_feature", "chat_feature",
}  # fmt: skip


def _source(name: str) -> str:
    package = importlib.util.find_spec("mlx_lm")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / name).read_text()


def upstream_keys() -> set[str]:
    """Return the keys that the installed mlx-lm knows: defaults, flags, and YAML's own."""
    flags = re.findall(r'"--([a-z-]+)"', _source("lora.py"))
    return set(LORA_DEFAULTS) | {flag.replace("-", "_") for flag in flags} | YAML_ONLY


@pytest.mark.parametrize("key", sorted(upstream_keys()))
def test_every_key_of_the_installed_mlx_lm_is_known(key: str) -> None:
    fields = TrainSpec.model_fields
    assert (key in fields) != (key in ELSEWHERE), f"mlx-lm has {key}: honour it, or say why not"
    if key in fields:
        assert key in KEYS, f"{key} does not find its way back into mlx_lm.lora's YAML"


@pytest.mark.parametrize("key", sorted(ELSEWHERE))
def test_a_key_that_is_no_setting_of_a_job_is_refused_with_the_way_out(key: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(TrainSpec, {**SPEC, key: "x"})
    assert refused.value.errors == [{"loc": [key], "msg": f"{ELSEWHERE[key]} (got 'x')"}]


def test_mlx_lms_features_and_splits_have_its_defaults() -> None:
    source = _source("tuner/datasets.py")
    for split in ("train", "valid"):
        default = HubData.model_fields[f"{split}_split"].default
        assert f'ds.get("{split}_split", "{default}")' in source
    features = re.findall(r'getattr\(config, "(\w+_feature)"', source)
    assert set(features) == YAML_ONLY - {"hf_dataset"}


def test_all_defaults_as_yaml_are_our_defaults() -> None:
    config = {**LORA_DEFAULTS, **SPEC, "order": "mlx-lm"}
    ours = parse(TrainSpec, {**from_mlx_lm(config), "optimizer_config": {}})
    assert ours == parse(TrainSpec, {**SPEC, "order": "mlx-lm"})


def test_there_and_back_is_the_same_spec() -> None:
    given = {
        "optimizer": "adamw",
        "optimizer_config": {"adamw": {"betas": [0.9, 0.98], "eps": 1e-6, "bias_correction": True}},
        "lr_schedule": {"name": "cosine_decay", "warmup": 3, "arguments": [1e-5, 100, 1e-7]},
        "lora_parameters": {"rank": 4, "scale": 10.0, "dropout": 0.1, "keys": ["self_attn.q_proj"]},
        "report_to": "wandb",
        "order": "mlx-lm",
    }
    spec = parse(TrainSpec, {**SPEC, **given})
    assert differences(spec) == ()
    config = to_mlx_lm(spec)
    assert config["train"] is True
    back = {**from_mlx_lm(config), "order": "mlx-lm"}
    assert parse(TrainSpec, back) == spec


def test_a_collection_goes_there_and_back() -> None:
    text = """
hf_dataset:
  - path: "Open-Orca/OpenOrca"
    train_split: "train[:90%]"
    valid_split: "train[-10%:]"
    prompt_feature: "question"
    completion_feature: "response"
  - path: "trl-lib/ultrafeedback"
    chat_feature: "chosen"
    config: {}
data: "ignored by mlx-lm"
"""
    spec = parse(TrainSpec, from_mlx_lm({"model": "team/base", **parse_yaml(text)}))
    assert spec.refs() == {
        "model": "team/base", "data": "Open-Orca/OpenOrca", "data_2": "trl-lib/ultrafeedback",
    }  # fmt: skip
    moved = spec.with_refs({"data_2": "job:abc", "data": "team/x"})
    assert [item.path for item in moved.hf_dataset] == ["team/x", "job:abc"]
    assert moved.data == "team/x"
    config = to_mlx_lm(spec)
    assert "data" not in config
    assert parse(TrainSpec, from_mlx_lm(config)) == spec


def test_one_entry_needs_no_list() -> None:
    entry = {"path": "team/billsum", "prompt_feature": "text", "completion_feature": "summary"}
    spec = parse(TrainSpec, {"model": "team/base", "hf_dataset": entry})
    assert spec.data == "team/billsum"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hf_dataset": {"path": "a/b", "config": {"name": "x"}}}, "datasets.load_dataset"),
        ({"data": "a/c", "hf_dataset": {"path": "a/b"}}, "reads hf_dataset alone"),
        ({"hf_dataset": {"path": "a/b"}, "text_feature": "x"}, "entries of hf_dataset"),
        ({"hf_dataset": {"path": "a/b"}, "test": True}, "no test_split of a/b"),
        ({"hf_dataset": {"path": "a/b", "train_split": "dev"}}, "'dev' is not a split"),
        ({"hf_dataset": {"path": "a/b", "train_split": "train[:120%]"}}, "between -100 and 100"),
        ({"hf_dataset": {"path": "a/b", "train_split": "train[80%]"}}, "write train, train[:80%]"),
        ({"optimizer_config": {"muon": {"betas": [0.9, 0.9]}}}, "muon has no 'betas'"),
        ({"optimizer_config": {"muon": {"ns_steps": 2.5}}}, "takes a whole number, not 2.5"),
        ({"optimizer_config": {"adam": {"betas": 0.9}}}, "takes two numbers, not 0.9"),
        ({"optimizer_config": {"sgd": {"nesterov": 1}}}, "is true or false, not 1"),
        ({"optimizer_config": {"adam": {"eps": None}}}, "leave it out for its default"),
        ({"lr_schedule": {"name": "step_decay", "arguments": [1, 2]}}, "[init, decay_rate, step_"),
        ({"report_to": "wandb,comet"}, "nothing is called 'comet'"),
        ({"epochs": 3}, "iters is rows ÷ batch_size × epochs"),
    ],
)
def test_what_mlx_lm_would_choke_on_is_refused_before(changes: dict[str, Any], said: str) -> None:
    spec = SPEC if "hf_dataset" not in changes else {"model": "team/base"}
    with pytest.raises(InvalidInput) as refused:
        parse(TrainSpec, {**spec, **changes})
    assert said in refused.value.detail


def test_services_are_a_text_or_a_list() -> None:
    for given in ("WandB, tensorboard,wandb", ["wandb", "tensorboard"]):
        spec = parse(TrainSpec, {**SPEC, "report_to": given})
        assert spec.report_to == "wandb,tensorboard"
    assert parse(TrainSpec, {**SPEC, "report_to": ""}).report_to is None


def test_settings_and_schedules_are_those_of_the_installed_mlx() -> None:
    import mlx.optimizers as optimizers

    classes = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon", "sgd": "SGD"}
    for name, known in SETTINGS.items():
        cls = getattr(optimizers, classes.get(name, "Adafactor"))
        taken = set(inspect.signature(cls.__init__).parameters) - {"self", "learning_rate"}
        assert taken == set(known), name
    for name, (fewest, most, names) in SCHEDULES.items():
        found = inspect.signature(getattr(optimizers.schedulers, name)).parameters
        assert ", ".join(found) == names
        assert len(found) == most
        assert sum(p.default is p.empty for p in found.values()) == fewest


@pytest.mark.parametrize("count", [1, 7, 100, 1003])
def test_splits_are_those_of_the_library(count: int) -> None:
    from datasets import ReadInstruction

    texts = ["train", "train[:80%]", "train[-10%:]", "train[3:9]", "train[33%:66%]", "train[-5:]"]
    texts += [f"train[{a}%:{b}%]" for a in range(0, 50, 7) for b in range(50, 101, 9)]
    for text in texts:
        theirs = ReadInstruction.from_spec(text).to_absolute({"train": count})[0]
        assert list(parts(text)[0].rows(count)) == list(range(theirs.from_, theirs.to)), text
    both = parts("train[:10%]+validation[:5]")
    assert [part.split for part in both] == ["train", "valid"]


def test_what_differs_is_said_above_the_command() -> None:
    spec = parse(TrainSpec, {**SPEC, "packing": True})
    text = by_hand(spec, "http://studio:8765")
    assert "# Differs: mlx_lm.lora pads each row and packs none." in text
    assert "HF_ENDPOINT=http://studio:8765 mlx_lm.lora --config /dev/stdin" in text
