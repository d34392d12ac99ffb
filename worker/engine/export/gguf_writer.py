"""GGUF files of llama, mistral, qwen2 and qwen3 models, by the ``gguf`` package, without torch.

Tensors are named, permuted and typed as llama.cpp's own converter does, and written one by one, so
that a model needs its own memory and one tensor more.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from worker.engine.export.gguf_tokenizer import Vocabulary, read_vocabulary
from worker.engine.models import Loaded
from worker.engine.report import BadInput

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (gguf.GGMLQuantizationType.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
}
_F16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: tensors, bytes, and the tensors kept wider than asked for."""

    tensors: int
    size: int
    wider: tuple[str, ...]


def architecture(config: dict[str, Any]) -> gguf.MODEL_ARCH:
    """Return GGUF's architecture of a model; raises BadInput naming one that is not known."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise BadInput(
            f"GGUF export does not know the architecture {kind!r}.",
            f"It knows {', '.join(ARCHITECTURES)}. Export to safetensors works for every model.",
        )
    return ARCHITECTURES[kind]


def write(
    loaded: Loaded,
    tokenizer_directory: Path,
    path: Path,
    kind: str,
    advance: Callable[[int, int], None],
) -> Written:
    """Write ``loaded`` (not quantized) to ``path`` as type ``kind``; raises BadInput.

    ``tokenizer_directory`` holds the tokenizer as ``save_pretrained`` leaves it.
    """
    arch = architecture(loaded.config)
    args = loaded.model.args
    vocabulary = read_vocabulary(tokenizer_directory, loaded.tokenizer, args.vocab_size)
    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_file_type(_TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_hyperparameters(writer, arch, args)
    _add_tokenizer(writer, vocabulary, tokenizer_directory, loaded)
    plan = _plan(writer, arch, loaded.model, kind)
    _check_rope(args)
    extra = _rope_factors(loaded.model)
    if extra is not None:
        writer.add_tensor_info("rope_freqs.weight", extra.shape, extra.dtype, extra.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (name, value, wanted) in enumerate(plan, 1):
        writer.write_tensor_data(_encode(name, _for_llama(arch, args, name, value), wanted))
        advance(done, len(plan))
    if extra is not None:
        writer.write_tensor_data(extra)
    writer.close()
    wider = tuple(
        name for name, value, wanted in plan if value.ndim > 1 and wanted != _TYPES[kind][0]
    )
    return Written(len(plan), path.stat().st_size, wider)


def _add_hyperparameters(writer: Any, arch: gguf.MODEL_ARCH, args: Any) -> None:
    """What llama.cpp builds the graph from; the values are those mlx-lm computes with."""
    head_dim = getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads
    writer.add_context_length(args.max_position_embeddings or 2048)
    writer.add_embedding_length(args.hidden_size)
    writer.add_block_count(args.num_hidden_layers)
    writer.add_feed_forward_length(args.intermediate_size)
    writer.add_head_count(args.num_attention_heads)
    writer.add_head_count_kv(args.num_key_value_heads)
    writer.add_layer_norm_rms_eps(args.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(args.vocab_size)
    writer.add_rope_freq_base(args.rope_theta)
    if arch == gguf.MODEL_ARCH.LLAMA:
        writer.add_rope_dimension_count(head_dim)
    scaling = args.rope_scaling or {}
    kind = scaling.get("type") or scaling.get("rope_type")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])


def _check_rope(args: Any) -> None:
    """Refuse what llama.cpp would compute otherwise than MLX, or what is not translated here."""
    scaling = args.rope_scaling or {}
    kind = scaling.get("type") or scaling.get("rope_type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise BadInput(
            f"GGUF export does not know the rope scaling {kind!r} of this model.",
            "It knows linear and llama3. Export to safetensors works for every model.",
        )
    if getattr(args, "rope_traditional", False):
        raise BadInput("GGUF export does not know models with rope_traditional.")
    layers = set(getattr(args, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"}:
        raise BadInput(f"GGUF export does not know layers of the type {', '.join(sorted(layers))}.")


def _rope_factors(model: Any) -> Any | None:
    """Llama 3's frequency factors [head_dim / 2], from MLX's own frequencies, or None."""
    rope = model.layers[0].self_attn.rope
    if type(rope).__name__ != "Llama3RoPE":
        return None
    plain = model.args.rope_theta ** (np.arange(0, rope.dims, 2) / rope.dims)
    return (np.array(rope._freqs, np.float32) / plain).astype(np.float32)


def _add_tokenizer(writer: Any, vocabulary: Vocabulary, directory: Path, loaded: Loaded) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_token_types(vocabulary.types)
    special = gguf.SpecialVocab(
        directory, load_merges=vocabulary.scores is None, n_vocab=len(vocabulary.tokens)
    )
    special.add_special_token = {"bos": vocabulary.add_bos, "eos": False}
    eos = loaded.config.get("eos_token_id")
    if "eos" not in special.special_token_ids and isinstance(eos, int):
        special.special_token_ids["eos"] = eos
    special.add_to_gguf(writer, quiet=True)


def _plan(
    writer: Any, arch: gguf.MODEL_ARCH, model: Any, kind: str
) -> list[tuple[str, Any, gguf.GGMLQuantizationType]]:
    """Announce every tensor to the writer; return name, value and type in writing order."""
    names = gguf.get_tensor_name_map(arch, len(model.layers))
    wanted = _TYPES[kind][0]
    weights = dict(tree_flatten(model.parameters()))
    tied = "lm_head.weight" not in weights
    plan = []
    for source, value in weights.items():
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise BadInput(f"GGUF has no name for the tensor {source} of this architecture.")
        chosen = _type_of(name, value.shape, wanted, tied)
        dtype, shape = _layout(chosen, value.shape)
        writer.add_tensor_info(
            name, shape, np.dtype(dtype), int(np.prod(shape)) * np.dtype(dtype).itemsize, chosen
        )
        plan.append((name, value, chosen))
    return plan


def _type_of(
    name: str, shape: tuple[int, ...], wanted: gguf.GGMLQuantizationType, tied: bool
) -> gguf.GGMLQuantizationType:
    """Norms and biases stay F32; the output head gets 8 bits where the rest gets 4, as in

    llama.cpp's own mixes (which use Q6_K there); rows no block divides stay F16.
    """
    if len(shape) < 2:
        return gguf.GGMLQuantizationType.F32
    four = (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_1)
    if wanted in four and name == ("token_embd.weight" if tied else "output.weight"):
        wanted = gguf.GGMLQuantizationType.Q8_0
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _layout(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """The numpy type and shape in which a tensor of ``shape`` is stored."""
    if kind == gguf.GGMLQuantizationType.F32:
        return np.float32, shape
    if kind == gguf.GGMLQuantizationType.F16:
        return np.float16, shape
    return np.uint8, tuple(gguf.quants.quant_shape_to_byte_shape(shape, kind))


def _for_llama(arch: gguf.MODEL_ARCH, args: Any, name: str, value: Any) -> Any:
    """Reorder the rows of q and k: llama.cpp's llama rotates neighbours, MLX rotates halves."""
    if arch != gguf.MODEL_ARCH.LLAMA or not (match := re.search(r"attn_([qk])\.", name)):
        return value
    heads = args.num_attention_heads if match[1] == "q" else args.num_key_value_heads
    rows = value.shape[0]
    return (
        value.reshape(heads, 2, rows // heads // 2, *value.shape[1:])
        .swapaxes(1, 2)
        .reshape(value.shape)
    )


def _encode(name: str, value: Any, kind: gguf.GGMLQuantizationType) -> Any:
    plain = np.array(value.astype(mx.float32))
    if kind == gguf.GGMLQuantizationType.F32:
        return plain
    if kind == gguf.GGMLQuantizationType.F16:
        largest = float(np.abs(plain).max())
        if largest > _F16_MAX:
            raise BadInput(
                f"{name} holds {largest:.6g}, and f16 ends at {_F16_MAX:.0f}.", "Use type bf16."
            )
        return plain.astype(np.float16)
    return gguf.quants.quantize(plain, kind)
