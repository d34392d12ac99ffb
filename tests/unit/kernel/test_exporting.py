"""What can be exported, told from a model's config and tokenizer."""

from typing import Any

import pytest
from pydantic import ValidationError

from espalier.errors import InvalidInput
from espalier.exporting import (
    ARCHITECTURES,
    GGUF_BYTES,
    PRE_TOKENIZERS,
    check_gguf,
    check_tokenizer,
    check_types,
    find_pre,
)
from espalier.specs import ExportSpec

LLAMA = {"model_type": "llama", "hidden_size": 4096}
GEMMA3 = {"model_type": "gemma3_text", "hidden_size": 1152, "query_pre_attn_scalar": 256}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "cohere"}, "'cohere'"),
        ({}, "None"),
        (LLAMA | {"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
        ({"model_type": "mixtral", "rope_scaling": {"type": "linear"}}, "'linear'"),
        (LLAMA | {"rope_traditional": True}, "rope_traditional"),
        (LLAMA | {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        (GEMMA3 | {"query_pre_attn_scalar": 168, "num_hidden_layers": 48}, "168"),
        (GEMMA3 | {"sliding_window_pattern": 4}, "pattern"),
        ({"model_type": "gemma2", "head_dim": 256}, "144"),
        ({"model_type": "qwen3_moe", "norm_topk_prob": False}, "norm_topk_prob"),
        ({"model_type": "qwen3_moe", "norm_topk_prob": True, "mlp_only_layers": [0]}, "experts"),
    ],
)
def test_what_nobody_proved_is_refused_with_the_ways_out(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_gguf(config, ["f16"])
    assert said in caught.value.detail
    assert "safetensors" in (caught.value.hint or "")
    assert "writer llama.cpp" in (caught.value.hint or "")
    assert caught.value.errors[0]["loc"] == ["spec", "model"]
    check_gguf(config, ["f16"], writer="llama.cpp")  # that one judges for itself


@pytest.mark.parametrize(
    "config",
    [
        LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        LLAMA | {"model_type": "mistral", "sliding_window": 4096},
        GEMMA3,
        # gemma 3's 27B is the one whose attention is scaled by its width
        {"model_type": "gemma3", "text_config": {**GEMMA3, "num_hidden_layers": 62,
         "hidden_size": 5376, "num_attention_heads": 32, "query_pre_attn_scalar": 168}},
        {"model_type": "gemma2", "hidden_size": 4608, "num_hidden_layers": 46,
         "num_attention_heads": 32, "head_dim": 128, "query_pre_attn_scalar": 144},
        {"model_type": "phi3", "hidden_size": 3072, "sliding_window": 2047},
        {"model_type": "qwen3_moe", "norm_topk_prob": True, "mlp_only_layers": []},
    ],
)  # fmt: skip
def test_what_was_proved_is_taken(config: dict[str, Any]) -> None:
    check_gguf(config, ["f16", "q8_0"])
    assert config["model_type"] in ARCHITECTURES


def test_blocks_must_divide_rows() -> None:
    check_types(LLAMA, GGUF_BYTES)
    check_types({"hidden_size": 896}, ["q4_0"])
    with pytest.raises(InvalidInput) as caught:
        check_types({"text_config": {"hidden_size": 896}}, ["q8_0", "q4_k_m"])
    assert "256 weights" in caught.value.detail
    assert "q4_0" in (caught.value.hint or "")
    assert "q6_k" not in (caught.value.hint or "")
    with pytest.raises(InvalidInput, match="have 100"):
        check_types({"hidden_size": 100}, ["q4_0"])


def _byte_level(*before: dict[str, Any], regex: bool = False) -> dict[str, Any]:
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}
    steps = {"type": "Sequence", "pretokenizers": [*before, last]}
    return {"model": {"type": "BPE"}, "pre_tokenizer": steps}


def _split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated"}


def test_pre_tokenizers_are_known_by_their_rules() -> None:
    for expression, name in PRE_TOKENIZERS.items():
        assert find_pre(_byte_level(_split(expression))) == name
    assert find_pre(_byte_level(regex=True)) == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    assert find_pre(_byte_level(digits, regex=True)) == "smollm"


def test_tokenizers_that_gguf_has_no_name_for_are_refused() -> None:
    rules = _byte_level(_split("[aeiou]+"))
    with pytest.raises(InvalidInput) as caught:
        check_tokenizer(rules)
    assert "[aeiou]+" in caught.value.detail
    assert "pre_tokenizer" in (caught.value.hint or "")
    check_tokenizer(rules, "qwen2")  # a person knows, and the proof will tell
    with pytest.raises(InvalidInput, match="Unigram"):
        check_tokenizer({"model": {"type": "Unigram"}})
    check_tokenizer({"model": {"type": "BPE", "byte_fallback": True}})


def test_the_spec_knows_what_goes_together() -> None:
    spec = ExportSpec(model="a/b", types=("f32", "q8_0", "q4_k_m"))
    assert spec.wanted == ("f32", "q8_0", "q4_k_m")
    assert spec.k_types == ("q4_k_m",)
    assert ExportSpec(model="a/b").wanted == ("f16",)
    refused: tuple[dict[str, Any], ...] = (
        {"types": ("f16", "f16")},
        {"type": "q4_0", "writer": "llama.cpp"},
        {"pre_tokenizer": "qwen2", "writer": "llama.cpp"},
        {"format": "safetensors", "type": "q8_0"},
        {"format": "safetensors", "types": ("f16",)},
        {"format": "safetensors", "writer": "llama.cpp"},
    )
    for case in refused:
        with pytest.raises(ValidationError):
            ExportSpec(model="a/b", **case)
