"""Adapters of PEFT: its own files and its own logits, kept beside this test, against MLX's."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

from espalier import peft, tensorfile
from espalier.errors import InvalidInput
from espalier.tensorfile import Tensor
from tests.integration.engine.folders import make_adapter, make_model
from tests.integration.engine.peft_reference import CASES, CONFIG, DATA, TOKENS, weights


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that PEFT's logits were computed with."""
    directory = tmp_path_factory.mktemp("base")
    tensors = {
        name: Tensor("F32", value.shape, value.tobytes()) for name, value in weights().items()
    }
    tensorfile.write(directory / "model.safetensors", tensors, "pt")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


def said(base: Path, adapter: Path | None) -> Any:
    """MLX's logits [tokens, vocabulary]."""
    model, _ = load_model(base)
    if adapter:
        load_adapters(model, str(adapter))
    model.eval()
    return np.array(model(mx.array(TOKENS))[0])


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "logits.json").read_text())
    return {name: np.array(rows) for name, rows in found.items()}


def test_the_base_is_the_same_in_both(base: Path, reference: dict[str, Any]) -> None:
    np.testing.assert_allclose(said(base, None), reference["base"], atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_with_pefts_own(
    base: Path, case: str, reference: dict[str, Any], tmp_path: Path
) -> None:
    found = peft.to_mlx(DATA / case, tmp_path, untied=case == "embedding")
    assert found.kind == ("dora" if case == "dora" else "lora")
    np.testing.assert_allclose(said(base, tmp_path), reference[case], atol=5e-5)
    assert np.abs(reference[case] - reference["base"]).max() > 0.3


@pytest.mark.parametrize("case", ["lora", "dora", "embedding"])
def test_there_and_back_every_bit_is_the_same(case: str, tmp_path: Path) -> None:
    untied = case == "embedding"
    peft.to_mlx(DATA / case, tmp_path / "mlx", untied=untied)
    found = peft.to_peft(tmp_path / "mlx", tmp_path / "back", base="org/model", untied=untied)
    before, after = (
        tensorfile.read(folder / peft.PEFT_WEIGHTS) for folder in (DATA / case, tmp_path / "back")
    )
    assert before == after
    config = json.loads((tmp_path / "back" / peft.CONFIG).read_text())
    original = json.loads((DATA / case / peft.CONFIG).read_text())
    same = ("r", "lora_alpha", "use_dora", "use_rslora", "bias", "peft_type", "task_type")
    assert [config[key] for key in same] == [original[key] for key in same]
    assert config["base_model_name_or_path"] == found.base == "org/model"


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx_adapters_come_back_through_peft(kind: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", arch="qwen3")
    adapter = make_adapter(tmp_path / "adapter", model, kind, scale=2.5, rank=3)
    peft.to_peft(adapter, tmp_path / "peft")
    peft.to_mlx(tmp_path / "peft", tmp_path / "again")
    first, second = (
        tensorfile.read(tmp_path / name / peft.MLX_WEIGHTS) for name in ("adapter", "again")
    )
    assert first == second
    parameters = json.loads((tmp_path / "again" / peft.CONFIG).read_text())["lora_parameters"]
    assert (parameters["rank"], parameters["scale"]) == (3, 2.5)
    loaded, _ = load_model(model)
    names = {
        n for n, _ in tree_flatten(load_adapters(loaded, str(tmp_path / "again")).parameters())
    }
    assert first.keys() <= names


def test_half_precision_is_moved_bit_by_bit_and_widened_only_where_scales_differ(
    tmp_path: Path,
) -> None:
    def half(name: str, dtype: str) -> dict[str, Tensor]:
        values = mx.arange(12, dtype=getattr(mx, dtype)).reshape(3, 4) / 7
        data = bytes(memoryview(values.view(mx.uint8)))
        kind = {"bfloat16": "BF16", "float16": "F16"}[dtype]
        prefix = f"base_model.model.model.layers.0.self_attn.{name}"
        return {
            f"{prefix}.lora_A.weight": Tensor(kind, (3, 4), data),
            f"{prefix}.lora_B.weight": Tensor(kind, (4, 3), data),
        }

    source = tmp_path / "peft"
    source.mkdir()
    tensors = half("q_proj", "bfloat16") | half("k_proj", "float16") | half("v_proj", "bfloat16")
    tensorfile.write(source / peft.PEFT_WEIGHTS, tensors, "pt")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "alpha_pattern": {"v_proj": 9}}
    (source / peft.CONFIG).write_text(json.dumps(config))
    found = peft.to_mlx(source, tmp_path / "mlx")
    assert (found.scale, found.rank, found.layers) == (2.0, 3, 3)
    read = mx.load(str(tmp_path / "mlx" / peft.MLX_WEIGHTS))
    block = "model.layers.0.self_attn"
    assert read[f"{block}.q_proj.lora_b"].dtype == mx.bfloat16
    assert read[f"{block}.k_proj.lora_a"].dtype == mx.float16
    values = mx.arange(12, dtype=mx.bfloat16).reshape(3, 4) / 7
    assert mx.array_equal(read[f"{block}.q_proj.lora_a"], values.T)
    assert mx.array_equal(read[f"{block}.q_proj.lora_b"], values.reshape(4, 3).T)
    scaled = read[f"{block}.v_proj.lora_b"]
    assert scaled.dtype == mx.float32
    assert mx.array_equal(scaled, values.reshape(4, 3).T.astype(mx.float32) * 1.5)


# --- Refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"peft_type": "IA3"}, "'IA3', and only LORA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_dora": True}, "has A and B, not A and B and a magnitude"),
        ({"lora_alpha": "much"}, "lora_alpha is 'much', no number"),
        ({"alpha_pattern": {"q_(proj": 2}}, "is no pattern"),
        ({"a_setting_of_tomorrow": 1}, "a_setting_of_tomorrow 1 has no equal"),
    ],
)
def test_settings_without_an_equal_are_refused(
    change: dict[str, Any], why: str, tmp_path: Path
) -> None:
    source = shutil.copytree(DATA / "lora", tmp_path / "peft")
    config = json.loads((source / peft.CONFIG).read_text()) | change
    (source / peft.CONFIG).write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match=why):
        peft.to_mlx(source, tmp_path / "mlx")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", "do not fit each other"),
        ("base_model.model.lm_head.weight", "a layer's own weight"),
        ("base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight", "several experts"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "is the embedding"),
        ("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", "has A, not A and B"),
    ],
)
def test_tensors_without_an_equal_are_refused(name: str, why: str, tmp_path: Path) -> None:
    source = shutil.copytree(DATA / "lora", tmp_path / "peft")
    tensors = tensorfile.read(source / peft.PEFT_WEIGHTS)
    tensors[name] = Tensor("F32", (4, 32), bytes(4 * 32 * 4))
    tensorfile.write(source / peft.PEFT_WEIGHTS, tensors, "pt")
    with pytest.raises(InvalidInput, match=why):
        peft.to_mlx(source, tmp_path / "mlx")


def test_a_dora_of_some_blocks_is_refused(tmp_path: Path) -> None:
    source = shutil.copytree(DATA / "dora", tmp_path / "peft")
    tensors = tensorfile.read(source / peft.PEFT_WEIGHTS)
    some = {name: value for name, value in tensors.items() if ".layers.0." in name}
    some |= {name: value for name, value in tensors.items() if ".layers.1.mlp." in name}
    tensorfile.write(source / peft.PEFT_WEIGHTS, some, "pt")
    with pytest.raises(InvalidInput, match="DoRA of some layers only"):
        peft.to_mlx(source, tmp_path / "mlx")


def test_what_is_no_lora_is_not_made_a_peft_adapter(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    adapter = make_adapter(tmp_path / "wide", model, keys=["model.embed_tokens"])
    with pytest.raises(InvalidInput, match="is the embedding"):
        peft.to_peft(adapter, tmp_path / "peft")
    (adapter / peft.CONFIG).write_text('{"fine_tune_type": "full", "num_layers": 2}')
    with pytest.raises(InvalidInput, match="a full fine-tune"):
        peft.to_peft(adapter, tmp_path / "peft")


def test_a_peft_folder_is_known_by_its_files() -> None:
    assert peft.is_peft({peft.CONFIG, peft.PEFT_WEIGHTS, "README.md"})
    assert not peft.is_peft({peft.CONFIG, peft.MLX_WEIGHTS})
    assert not peft.is_peft({peft.CONFIG, peft.MLX_WEIGHTS, peft.PEFT_WEIGHTS})
