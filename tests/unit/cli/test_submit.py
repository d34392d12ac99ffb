"""Flags and config files become the requests that the form and the API make."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from espalier.cli.app import app
from espalier.cli.submit import build
from espalier.commandline import command
from espalier.errors import InvalidInput
from espalier.specs import SPECS, JobRequest, parse
from espalier.states import Kind
from espalier.yamlfile import parse_yaml, read_yaml

NEEDED = {"model": "team/tiny", "data": "team/sql", "adapter": "team/sql-adapter"}
#: Keys that only a config file can say.
YAML_ONLY = {"kind", "hf_dataset", "lora_parameters", "lr_schedule", "optimizer_config"}
MLX_LM_CONFIG = """
model: team/tiny
train: true
fine_tune_type: dora
optimizer: adamw
optimizer_config:
  adamw: {weight_decay: 1e-2}
data: team/sql
learning_rate: 2e-5
lora_parameters: {rank: 4, scale: 10, dropout: 0.0}
lr_schedule:
  name: cosine_decay
  warmup: 10
  arguments: [2e-5, 100]
adapter_path: adapters
resume_adapter_file: null
"""
#: ``mlx_lm/examples/lora_config.yaml`` of mlx-lm's repository, without its comments.
MLX_LM_EXAMPLE = """
model: "mlx-community/Llama-3.2-1B-Instruct"
train: true
fine_tune_type: lora
optimizer: adamw
data: "mlx-community/WikiSQL"
seed: 0
num_layers: 16
batch_size: 4
iters: 1000
val_batches: 25
learning_rate: 1e-5
steps_per_report: 10
steps_per_eval: 200
resume_adapter_file: null
adapter_path: "adapters"
save_every: 100
test: false
test_batches: 100
max_seq_length: 2048
grad_checkpoint: false
lora_parameters:
  keys: ["self_attn.q_proj", "self_attn.v_proj"]
  rank: 8
  scale: 20.0
  dropout: 0.0
"""


def _given(kind: Kind, **more: object) -> dict[str, object]:
    fields = SPECS[kind].model_fields
    return {k: v for k, v in NEEDED.items() if k in fields} | more


@pytest.mark.parametrize("kind", list(Kind))
def test_every_key_of_a_spec_has_its_flag(cli: CliRunner, kind: Kind) -> None:
    help_text = cli.invoke(app, [kind, "--help"]).output
    for name in SPECS[kind].model_fields.keys() - YAML_ONLY:
        assert f"--{name.replace('_', '-')} " in help_text.replace(" / ", " "), name
    for flag in ("--name", "--project", "--priority", "--config", "--wait", "--json"):
        assert flag in help_text


def test_defaults_give_way_to_the_config_and_it_to_flags() -> None:
    config = {"iters": 50, "learning_rate": 2e-5, "lora_parameters": {"rank": 4, "scale": 10.0}}
    spec = build(Kind.TRAIN, config, _given(Kind.TRAIN, iters=7, rank=2, mask_prompt=True)).spec
    assert spec.kind == "train"
    assert (spec.iters, spec.learning_rate, spec.batch_size) == (7, 2e-5, 4)
    assert (spec.lora_parameters.rank, spec.lora_parameters.scale) == (2, 10.0)
    assert spec.mask_prompt


def test_a_config_of_mlx_lm_is_read_as_it_is(user: Path) -> None:
    (user / "lora.yaml").write_text(MLX_LM_CONFIG)
    spec = build(Kind.TRAIN, read_yaml(user / "lora.yaml"), {}).spec
    assert spec.kind == "train"
    assert spec.optimizer_config == {"adamw": {"weight_decay": 0.01}}
    assert spec.lr_schedule is not None
    assert spec.lr_schedule.arguments == (2e-5, 100.0)


def test_the_example_config_of_mlx_lm_is_read_as_it_is() -> None:
    spec = build(Kind.TRAIN, parse_yaml(MLX_LM_EXAMPLE), {}).spec
    assert spec.kind == "train"
    assert spec.model == "mlx-community/Llama-3.2-1B-Instruct"
    assert (spec.optimizer, spec.learning_rate, spec.test_batches) == ("adamw", 1e-5, 100)
    assert spec.lora_parameters.keys == ("self_attn.q_proj", "self_attn.v_proj")


def test_the_same_by_hand_is_printed_and_nothing_submitted(cli: CliRunner) -> None:
    words = ["train", "--model", "hf:org/base", "--data", "team/sql", "--order", "mlx-lm"]
    result = cli.invoke(app, [*words, "--keys", "self_attn.q_proj,self_attn.v_proj", "--by-hand"])
    assert result.exit_code == 0, result.output
    first, _, document = result.output.partition("\n")
    assert first == "mlx_lm.lora --config /dev/stdin <<'YAML'"
    config = parse_yaml(document.removesuffix("YAML\n"))
    assert (config["model"], config["data"], config["train"]) == ("org/base", "team/sql", True)
    assert config["lora_parameters"]["keys"] == ["self_attn.q_proj", "self_attn.v_proj"]


def test_what_surrounds_the_spec_comes_from_flags() -> None:
    around = {"name": "team/mine", "project": "team", "priority": 5, "note": "a try"}
    request = build(Kind.EVAL, {}, _given(Kind.EVAL, **around))
    assert (request.name, request.project, request.priority) == ("team/mine", "team", 5)
    assert request.note == "a try"


@pytest.mark.parametrize(
    ("spec", "around"),
    [
        ({"kind": "train", "num_layers": -1, "mask_prompt": True, "learning_rate": 3e-4}, {}),
        ({"kind": "train", "lora_parameters": {"rank": 2}}, {"name": "team/x", "priority": 3}),
        ({"kind": "eval", "compare_base": False, "adapter": "team/sql-adapter"}, {}),
        ({"kind": "quantize", "q_bits": 3, "dtype": "bfloat16"}, {}),
        ({"kind": "fuse", "adapter": "job:abc#adapter", "dequantize": True}, {}),
        ({"kind": "export", "type": "q4_1", "min_token_match": 0.5}, {"project": "team"}),
    ],
)
def test_the_command_that_a_page_shows_submits_the_same_spec(
    cli: CliRunner,
    monkeypatch: pytest.MonkeyPatch,
    user: Path,
    spec: dict[str, object],
    around: dict[str, object],
) -> None:
    request = parse(JobRequest, {"spec": {"model": "t/m", "data": "t/d", **spec}, **around})
    words = command(
        request.spec, name=request.name, project=request.project, priority=request.priority
    )
    line, _, document = words.partition(" <<'YAML'\n")
    (user / "stdin").write_text(document.removesuffix("YAML"))
    arguments = shlex.split(line.replace("/dev/stdin", "stdin"))[1:]
    sent: list[JobRequest] = []
    monkeypatch.setattr("espalier.cli.submit._post", lambda _client, request: sent.append(request))
    monkeypatch.setattr("espalier.cli.submit._finish", lambda *_, **__: None)
    monkeypatch.setenv("ESPALIER_TOKEN", "hf_unused")
    result = cli.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert sent[0].spec == request.spec
    assert (sent[0].name, sent[0].project, sent[0].priority) == (
        request.name,
        request.project,
        request.priority,
    )


@pytest.mark.parametrize(
    ("kind", "config", "given", "said"),
    [
        (Kind.TRAIN, {}, {"iters": 0}, "--iters: Input should be greater than or equal to 1"),
        (Kind.TRAIN, {}, {"rank": 0}, "--rank: Input should be greater than or equal to 1"),
        (Kind.TRAIN, {}, {"priority": 101}, "--priority: Input should be less than or equal"),
        (Kind.TRAIN, {"itres": 5}, {}, "--itres: Extra inputs are not permitted (got 5)"),
        (Kind.TRAIN, {"kind": "eval"}, {}, "The config is of kind 'eval'"),
        (Kind.TRAIN, {"trust_remote_code": True}, {}, "code from a model repository"),
        (Kind.TRAIN, {"lr_schedule": {"name": "x", "arguments": [1]}}, {}, "lr_schedule.name: "),
        (Kind.QUANTIZE, {}, {"q_bits": 7}, "q_bits 7 has no kernel"),
        (Kind.TRAIN, {}, {"data": "./wikisql"}, "--data ./wikisql is a path on this machine"),
        (Kind.FUSE, {}, {"model": "/models/x"}, "--model /models/x is a path on this machine"),
        (
            Kind.TRAIN,
            {"resume_adapter_file": "./adapters/0000100_adapters.safetensors"},
            {},
            "--resume-adapter-file ./adapters/0000100_adapters.safetensors is a path",
        ),
        (
            Kind.TRAIN,
            {"resume_adapter_file": "adapters/0000100_adapters.safetensors"},
            {},
            "--resume-adapter-file adapters/0000100_adapters.safetensors is a path",
        ),
        (Kind.TRAIN, {"hf_dataset": {"path": "./rows"}}, {}, "--data ./rows is a path"),
        (Kind.TRAIN, {}, {"clear_cache_threshold": "2TB"}, "write bytes, 512MB or 2GB"),
        (Kind.TRAIN, {"lora_parameters": {"alpha": 16}}, {}, "--alpha: mlx-lm's LoRA takes scale"),
        (Kind.EVAL, {}, {"adapter": "a b"}, "--adapter: 'a b' is not an artifact reference"),
    ],
)
def test_what_is_wrong_is_told_in_the_words_that_were_typed(
    kind: Kind, config: dict[str, object], given: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        build(kind, config, _given(kind, **given))
    assert said in refused.value.detail


def test_a_fault_of_the_whole_spec_is_told_without_a_flag() -> None:
    with pytest.raises(InvalidInput) as refused:
        build(Kind.QUANTIZE, {}, {"model": "t/m", "method": "awq"})
    assert refused.value.detail.startswith("method awq learns from text")


def test_a_directory_in_place_of_data_is_answered_with_the_push_command(cli: CliRunner) -> None:
    result = cli.invoke(app, ["train", "--model", "t/m", "--data", "./wikisql"])
    assert result.exit_code == 2
    assert "espalier dataset push ./wikisql PROJECT/NAME" in result.stderr


def test_a_request_without_model_names_the_flag(cli: CliRunner) -> None:
    result = cli.invoke(app, ["train"])
    assert result.exit_code == 2
    assert "--model: Field required" in result.stderr
    assert "--data: Field required" in result.stderr
    assert result.stdout == ""
