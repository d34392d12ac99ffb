"""What can be exported, told from config.json and tokenizer.json alone.

One truth for the form, the submit and the engine: an architecture is here when llama.cpp was seen
to give MLX's tokens on a model of it. Everything else is refused, never guessed: a wrong name or a
wrong scale changes the text without a word.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from espalier.errors import InvalidInput

#: GGUF's types → bytes of a weight, scales included. A mix's are those of most of its tensors.
GGUF_BYTES: dict[str, float] = {
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "q6_k": 210 / 256,
    "q5_k_m": 184 / 256,
    "q4_k_m": 156 / 256,
    "q3_k_m": 124 / 256,
    "q2_k": 96 / 256,
}
#: Those that ggml's own code makes, out of blocks of 256 weights.
K_TYPES = ("q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
FLOATS = ("f32", "f16", "bf16")
#: Weights of a row that a type packs together.
BLOCKS = {name: 256 if name in K_TYPES else 1 if name in FLOATS else 32 for name in GGUF_BYTES}

#: ``model_type`` of config.json, as mlx-lm reads it, of the models that the writer knows.
ARCHITECTURES = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2",
    "gemma3_text", "gemma3", "phi", "phi3",
)  # fmt: skip
#: Rotary scalings that MLX and llama.cpp compute alike, by the models that have them in mlx-lm.
_SCALINGS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("linear", "llama3", "yarn")),
    "gemma3_text": ("linear",),
    "gemma3": ("linear",),
}
_WAYS_OUT = (
    "Export with format safetensors, which works for every model; or with writer llama.cpp, on a"
    " worker that has llama.cpp's convert_hf_to_gguf.py, which knows more"
)
#: What gemma's attention is scaled by in llama.cpp, for its one size where it is no head's width.
_BY_HIDDEN = {"gemma2": 46, "gemma3_text": 62, "gemma3": 62}


def refuse(message: str, hint: str, field: str = "model") -> InvalidInput:
    """The refusal of an export, at the spec's field."""
    return InvalidInput(message, hint=hint, errors=[{"loc": ["spec", field], "msg": message}])


def check_architecture(config: Mapping[str, Any]) -> None:
    """Raise InvalidInput, naming what and the ways out, for a model whose GGUF nobody has proved.

    ``config`` is the model's config.json.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise refuse(
            f"GGUF export does not know the architecture {kind!r}.",
            f"It knows {', '.join(ARCHITECTURES)}. {_WAYS_OUT}.",
        )
    text = {**config, **(config.get("text_config") or {})}
    for fault in (_scaling(kind, text), _attention(kind, text), _experts(kind, text)):
        if fault:
            raise refuse(f"GGUF export of {kind}: {fault}.", f"{_WAYS_OUT}.")


def _scaling(kind: str, config: Mapping[str, Any]) -> str | None:
    scaling = config.get("rope_scaling") or {}
    name = scaling.get("type") or scaling.get("rope_type") or "default"
    if name != "default" and name not in _SCALINGS.get(kind, ()):
        return f"MLX and llama.cpp compute its rope scaling {name!r} differently"
    if config.get("rope_traditional"):
        return "rope_traditional has no name in GGUF"
    return None


def _attention(kind: str, config: Mapping[str, Any]) -> str | None:
    """Windows and scales that one of the two engines does not have."""
    layers = set(config.get("layer_types") or ())
    if layers - {"full_attention"} and kind in ("llama", "mistral"):
        return f"layers of the type {', '.join(sorted(layers - {'full_attention'}))} are not known"
    if kind in _BY_HIDDEN:
        asked = config.get("query_pre_attn_scalar", 144 if kind == "gemma2" else 256)
        width = config.get("head_dim", 256)
        if config.get("num_hidden_layers") == _BY_HIDDEN[kind]:
            width = config["hidden_size"] // config["num_attention_heads"]
        if asked != width:
            return f"llama.cpp scales attention by {width}, and query_pre_attn_scalar is {asked}"
    if kind.startswith("gemma3") and config.get("sliding_window_pattern", 6) != 6:
        return f"llama.cpp knows sliding_window_pattern 6, not {config['sliding_window_pattern']}"
    return None


def _experts(kind: str, config: Mapping[str, Any]) -> str | None:
    if kind != "qwen3_moe":
        return None
    if not config.get("norm_topk_prob"):
        return "llama.cpp always sums the experts' shares to one, and norm_topk_prob is off"
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        return "llama.cpp has experts in every layer, and this model not"
    return None


def check_gguf(
    config: Mapping[str, Any],
    types: Iterable[str],
    writer: str = "own",
    tokenizer: Mapping[str, Any] | None = None,
    pre_tokenizer: str | None = None,
) -> None:
    """Raise InvalidInput, naming what and the ways out, for an export that cannot work.

    ``config`` and ``tokenizer`` are the model's config.json and tokenizer.json, the latter as far
    as it is known; ``types``, ``writer`` and ``pre_tokenizer`` are the spec's.
    """
    check_types(config, types)
    if writer == "own":
        check_architecture(config)
        if tokenizer is not None:
            check_tokenizer(tokenizer, pre_tokenizer)


def check_types(config: Mapping[str, Any], types: Iterable[str]) -> None:
    """Raise InvalidInput for a type whose blocks do not divide the model's rows."""
    text = {**config, **(config.get("text_config") or {})}
    hidden = text.get("hidden_size")
    for name in types:
        block = BLOCKS[name]
        if isinstance(hidden, int) and hidden % block:
            fitting = [t for t in GGUF_BYTES if hidden % BLOCKS[t] == 0]
            raise refuse(
                f"type {name} packs {block} weights of a row together, and this model's rows have"
                f" {hidden}.",
                f"Types that fit: {', '.join(fitting)}.",
                "type",
            )


# --- Tokenizers ---------------------------------------------------------------------------

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACE}"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_MARKS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"
#: The splitting expression of a byte-level tokenizer → llama.cpp's name for it.
PRE_TOKENIZERS = {
    _GPT2: "gpt-2",
    f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}{{1,3}}|{_TAIL}": "llama-bpe",
    f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}|{_TAIL}": "qwen2",
    f"{_UPPER}|{_LOWER}|\\p{{N}}|{_MARKS}": "tekken",
    f"{_UPPER}{_CONTRACTIONS}?|{_LOWER}{_CONTRACTIONS}?|\\p{{N}}{{1,3}}|{_MARKS}": "gpt-4o",
}


def splits(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, a sequence taken apart."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return [s for step in pre_tokenizer["pretokenizers"] for s in splits(step)]
    return [pre_tokenizer]


def is_sentencepiece(rules: Mapping[str, Any]) -> bool:
    """Say whether a ``tokenizer.json`` is SentencePiece's BPE: ▁ for space, bytes as a fallback."""
    model = rules["model"]
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def find_pre(rules: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a ``tokenizer.json``; raise InvalidInput."""
    steps = splits(rules.get("pre_tokenizer"))
    if steps and steps[-1]["type"] == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        *before, last = steps
        regex = last.get("use_regex", True)
        kinds = [step["type"] for step in before]
        if regex and not kinds:
            return "gpt-2"
        if regex and kinds == ["Digits"] and before[0].get("individual_digits"):
            return "smollm"
        if not regex and kinds == ["Split"]:
            expression = before[0]["pattern"].get("Regex")
            if expression in PRE_TOKENIZERS:
                return PRE_TOKENIZERS[expression]
    raise refuse(
        "The tokenizer's pre-tokenizer is not one that GGUF has a known name for:"
        f" {json.dumps(steps, ensure_ascii=False):.400}",
        f"Known are those of {', '.join(sorted({*PRE_TOKENIZERS.values(), 'smollm'}))}, and"
        " SentencePiece's. If llama.cpp has a name for it, say it with pre_tokenizer: the proof"
        f" compares the tokens. Or: {_WAYS_OUT[0].lower()}{_WAYS_OUT[1:]}.",
    )


def check_tokenizer(rules: Mapping[str, Any], pre_tokenizer: str | None = None) -> None:
    """Raise InvalidInput for a ``tokenizer.json`` that GGUF cannot hold or has no name for."""
    kind = rules.get("model", {}).get("type")
    if kind != "BPE":
        raise refuse(
            f"The tokenizer is of the kind {kind}: GGUF export knows BPE, byte by byte or"
            " SentencePiece's.",
            f"{_WAYS_OUT}.",
        )
    if not is_sentencepiece(rules) and not pre_tokenizer:
        find_pre(rules)
