"""Every architecture that an export knows: llama.cpp computes what MLX computes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map_with_path
from mlx_lm.utils import _get_classes, save_model

from espalier import exporting
from tests.integration.engine.child import Child
from worker.engine import tiny
from worker.engine.export import engines

ChildRunner = Callable[..., Child]

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "vocab_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_GEMMA3 = {
    "query_pre_attn_scalar": 32,
    "num_hidden_layers": 6,
    "sliding_window": 16,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
#: Every architecture that an export knows, each with what is peculiar to it.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "llama-tied": {"tie_word_embeddings": True, "rope_scaling": _LLAMA3},
    "mistral": {},
    "mixtral": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"head_dim": 16, "rope_scaling": _YARN},
    "qwen2_moe": {**_EXPERTS, "head_dim": 16, "shared_expert_intermediate_size": 96},
    "qwen3": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "qwen3_moe": {
        **_EXPERTS, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {**_GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma3": {"text_config": {**_GEMMA3, "model_type": "gemma3_text"}},
    "phi": {"head_dim": 16, "num_key_value_heads": 4, "partial_rotary_factor": 0.5,
            "layer_norm_eps": 1e-5},
    "phi3": {"head_dim": 16, "partial_rotary_factor": 0.5, "sliding_window": 2047,
             "pad_token_id": 0},
}  # fmt: skip


def make_random(directory: Path, name: str) -> Path:
    """A random model of mlx-lm's own class whose every weight, norms and biases too, counts."""
    directory.mkdir()
    config = {**_SIZES, "model_type": name.split("-")[0], **ARCHITECTURES[name]}
    if text := config.get("text_config"):
        config["text_config"] = {**_SIZES, **text}
    tiny.make_tokenizer(directory, 512, 0)
    mx.random.seed(1)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(copy.deepcopy(config)))

    def init(_: str, value: Any) -> Any:
        noise = mx.random.normal(value.shape)
        return noise * 0.16 if value.ndim > 1 else value + noise * 0.1

    model.update(tree_map_with_path(init, model.parameters()))
    save_model(directory, model)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_every_architecture_is_tried() -> None:
    assert {name.split("-")[0] for name in ARCHITECTURES} == set(exporting.ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(
    name: str,
    dataset: Path,
    inside: ChildRunner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "_ROWS", 6)
    model = make_random(tmp_path / "model", name)
    spec = {"type": "f32", "proof_prompts": 3, "proof_tokens": 16}
    run = inside("export", spec, {"model": model, "data": dataset})
    assert run.done.state == "succeeded", run.log
    proofs = run.proofs()
    assert proofs["token_match"].value > 0.95, proofs["token_match"].detail
    # Another norm, rotation, scale, window or router would move this by far more.
    assert abs(proofs["perplexity_difference"].value) < 2e-3, proofs["perplexity_difference"].detail
