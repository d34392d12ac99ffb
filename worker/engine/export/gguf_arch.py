"""How a model of MLX becomes one of llama.cpp: hyperparameters, names and the layout of tensors.

Each architecture is here because llama.cpp was seen to give MLX's tokens on a model of it
(tests/integration/engine/test_export.py); espalier.exporting says what is refused.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from worker.engine.models import Loaded
from worker.engine.report import BadInput

_ARCH = gguf.MODEL_ARCH


@dataclass(frozen=True, slots=True)
class Family:
    """``neighbours``: llama.cpp rotates neighbouring rows of q and k, MLX the halves of a head.

    ``norm_plus_one``: MLX stores a norm less one. ``tell`` adds the hyperparameters that only
    this family has: (writer, args, config).
    """

    arch: gguf.MODEL_ARCH
    neighbours: bool = False
    norm_plus_one: bool = False
    tell: Callable[[Any, Any, dict[str, Any]], None] = lambda writer, args, config: None


def _mixtral(writer: Any, args: Any, config: dict[str, Any]) -> None:
    writer.add_expert_count(args.num_local_experts)
    writer.add_expert_used_count(args.num_experts_per_tok)


def _qwen_moe(writer: Any, args: Any, config: dict[str, Any]) -> None:
    writer.add_expert_count(args.num_experts)
    writer.add_expert_used_count(args.num_experts_per_tok)
    writer.add_expert_feed_forward_length(args.moe_intermediate_size)
    if shared := getattr(args, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(shared)


def _gemma2(writer: Any, args: Any, config: dict[str, Any]) -> None:
    writer.add_attn_logit_softcapping(args.attn_logit_softcapping)
    writer.add_final_logit_softcapping(args.final_logit_softcapping)
    # MLX attends to all; up to this many tokens that is the same.
    writer.add_sliding_window(config.get("sliding_window") or 4096)


def _gemma3(writer: Any, args: Any, config: dict[str, Any]) -> None:
    writer.add_sliding_window(args.sliding_window)
    writer.add_rope_freq_base_swa(args.rope_local_base_freq)


def _phi(writer: Any, args: Any, config: dict[str, Any]) -> None:
    width = args.hidden_size // args.num_attention_heads
    writer.add_rope_dimension_count(int(width * args.partial_rotary_factor))


def _phi3(writer: Any, args: Any, config: dict[str, Any]) -> None:
    _phi(writer, args, config)
    if window := config.get("sliding_window"):
        writer.add_sliding_window(window)


FAMILIES = {
    "llama": Family(_ARCH.LLAMA, neighbours=True),
    "mistral": Family(_ARCH.LLAMA, neighbours=True),
    "mixtral": Family(_ARCH.LLAMA, neighbours=True, tell=_mixtral),
    "qwen2": Family(_ARCH.QWEN2),
    "qwen2_moe": Family(_ARCH.QWEN2MOE, tell=_qwen_moe),
    "qwen3": Family(_ARCH.QWEN3),
    "qwen3_moe": Family(_ARCH.QWEN3MOE, tell=_qwen_moe),
    "gemma": Family(_ARCH.GEMMA, norm_plus_one=True),
    "gemma2": Family(_ARCH.GEMMA2, norm_plus_one=True, tell=_gemma2),
    "gemma3_text": Family(_ARCH.GEMMA3, norm_plus_one=True, tell=_gemma3),
    "gemma3": Family(_ARCH.GEMMA3, norm_plus_one=True, tell=_gemma3),
    "phi": Family(_ARCH.PHI2, tell=_phi),
    "phi3": Family(_ARCH.PHI3, tell=_phi3),
}


@dataclass(frozen=True, slots=True)
class Source:
    """The text part of a loaded model, and the config that its numbers are in."""

    family: Family
    model: Any
    args: Any
    config: dict[str, Any]

    @classmethod
    def of(cls, loaded: Loaded) -> "Source":
        """``espalier.exporting.check_architecture`` has passed its config."""
        inner = getattr(loaded.model, "language_model", loaded.model)
        config = {**loaded.config, **(loaded.config.get("text_config") or {})}
        return cls(FAMILIES[loaded.config["model_type"]], inner, inner.args, config)

    @property
    def head_dim(self) -> int:
        given = getattr(self.args, "head_dim", None)
        return int(given or self.args.hidden_size // self.args.num_attention_heads)

    def heads_of(self, name: str) -> int | None:
        """The heads a tensor's rows are dealt to, where llama.cpp has them in another order."""
        match = re.search(r"attn_([qk])\.", name) if self.family.neighbours else None
        if match is None:
            return None
        args = self.args
        return int(args.num_attention_heads if match[1] == "q" else args.num_key_value_heads)


def add_hyperparameters(writer: Any, source: Source) -> None:
    """What llama.cpp builds the graph from; the values are those mlx-lm computes with."""
    args, config = source.args, source.config
    context = getattr(args, "max_position_embeddings", None) or config.get(
        "max_position_embeddings"
    )
    writer.add_context_length(context or 2048)
    writer.add_embedding_length(args.hidden_size)
    writer.add_block_count(args.num_hidden_layers)
    writer.add_feed_forward_length(args.intermediate_size)
    writer.add_head_count(args.num_attention_heads)
    writer.add_head_count_kv(args.num_key_value_heads)
    if hasattr(args, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(args.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(args.layer_norm_eps)
    writer.add_key_length(source.head_dim)
    writer.add_value_length(source.head_dim)
    writer.add_vocab_size(args.vocab_size)
    writer.add_rope_freq_base(args.rope_theta)
    if source.family.neighbours:
        writer.add_rope_dimension_count(source.head_dim)
    _add_scaling(writer, args)
    source.family.tell(writer, args, config)


def _add_scaling(writer: Any, args: Any) -> None:
    scaling = getattr(args, "rope_scaling", None) or {}
    kind = scaling.get("type") or scaling.get("rope_type")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling.get("original_max_position_embeddings", 4096))


def rope_factors(source: Source) -> Any | None:
    """Llama 3's frequency factors [head_dim / 2], from MLX's own frequencies, or None."""
    rope: Any = getattr(getattr(source.model.layers[0], "self_attn", None), "rope", None)
    if type(rope).__name__ != "Llama3RoPE":
        return None
    plain = source.args.rope_theta ** (np.arange(0, rope.dims, 2) / rope.dims)
    return (np.array(rope._freqs, np.float32) / plain).astype(np.float32)


#: MLX's names of stacked experts → those that the name map of ``gguf`` has.
_EXPERTS = {"block_sparse_moe.switch_mlp.": "mlp.experts.", "mlp.switch_mlp.": "mlp.experts."}


def tensors(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield (GGUF's name, MLX's value as llama.cpp lays it out), lazily computed.

    Raises BadInput for a tensor that GGUF has no name for.
    """
    names = gguf.get_tensor_name_map(source.family.arch, len(source.model.layers))
    for told, value in tree_flatten(source.model.parameters()):
        known = told
        for mlx_name, name in _EXPERTS.items():
            known = known.replace(mlx_name, name)
        name = names.get_name(known, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise BadInput(f"GGUF has no name for the tensor {told} of this architecture.")
        yield name, _laid_out(source, name, value)


def _laid_out(source: Source, name: str, value: Any) -> Any:
    if source.family.norm_plus_one and name.endswith("norm.weight"):
        return value.astype(mx.float32) + 1.0
    heads = source.heads_of(name)
    if heads is None:
        return value
    rows = value.shape[0]
    return (
        value.reshape(heads, 2, rows // heads // 2, *value.shape[1:])
        .swapaxes(1, 2)
        .reshape(value.shape)
    )
