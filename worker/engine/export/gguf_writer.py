"""GGUF files of MLX models, by the ``gguf`` package, without torch.

Tensors are named, laid out and typed as llama.cpp's own converter does, and written one by one, so
that a model needs its own memory and one tensor more.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np

from worker.engine.export.gguf_arch import Source, add_hyperparameters, rope_factors, tensors
from worker.engine.export.gguf_tokenizer import Vocabulary
from worker.engine.report import BadInput

_Type = gguf.GGMLQuantizationType
_TYPES = {
    "f32": (_Type.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (_Type.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (_Type.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (_Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (_Type.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (_Type.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (_Type.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (_Type.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_F16_MAX = 65504.0
#: Tensors that llama.cpp reads in full precision, whatever the type of the file.
_FULL = ("ffn_gate_inp", "rope_freqs")


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: tensors, bytes, and the tensors kept wider than asked for."""

    tensors: int
    size: int
    wider: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class About:
    """What a file tells of itself to the people who open it."""

    name: str
    license: str | None = None


def write(
    source: Source,
    vocabulary: Vocabulary,
    about: About,
    path: Path,
    kind: str,
    advance: Callable[[int, int], None],
) -> Written:
    """Write a model (not quantized) to ``path`` as type ``kind``; raises BadInput."""
    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[source.family.arch])
    writer.add_name(about.name)
    if about.license:
        writer.add_license(about.license)
    writer.add_file_type(_TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_hyperparameters(writer, source)
    _add_tokenizer(writer, vocabulary)
    plan = _plan(writer, source, kind)
    extra = rope_factors(source)
    if extra is not None:
        writer.add_tensor_info("rope_freqs.weight", extra.shape, extra.dtype, extra.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, ((name, value), wanted) in enumerate(zip(tensors(source), plan, strict=True), 1):
        writer.write_tensor_data(_encode(name, value, wanted))
        advance(done, len(plan))
    if extra is not None:
        writer.write_tensor_data(extra)
    writer.close()
    wider = tuple(
        name
        for (name, value), wanted in zip(tensors(source), plan, strict=True)
        if value.ndim > 1 and wanted != _TYPES[kind][0] and not _is_full(name)
    )
    return Written(len(plan), path.stat().st_size, wider)


def _add_tokenizer(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_token_types(vocabulary.types)
    special = gguf.SpecialVocab(
        vocabulary.directory,
        load_merges=vocabulary.scores is None,
        n_vocab=len(vocabulary.tokens),
    )
    special.add_special_token = {"bos": vocabulary.add_bos, "eos": False}
    if vocabulary.ends and "eos" not in special.special_token_ids:
        special.special_token_ids["eos"] = vocabulary.ends[0]
    others = [end for end in vocabulary.ends if end != special.special_token_ids.get("eos")]
    if others:  # a chat's turn ends by another token than its text
        special.special_token_ids.setdefault("eot", others[0])
    special.add_to_gguf(writer, quiet=True)


def _plan(writer: Any, source: Source, kind: str) -> list[gguf.GGMLQuantizationType]:
    """Announce every tensor to the writer; return their types in writing order."""
    wanted = _TYPES[kind][0]
    named = {name: value.shape for name, value in tensors(source)}
    head = "output.weight" if "output.weight" in named else "token_embd.weight"
    plan = []
    for name, shape in named.items():
        chosen = _type_of(name, shape, wanted, name == head)
        dtype, stored = _layout(chosen, shape)
        size = int(np.prod(stored)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(name, stored, np.dtype(dtype), size, chosen)
        plan.append(chosen)
    return plan


def _is_full(name: str) -> bool:
    return any(part in name for part in _FULL)


def _type_of(
    name: str, shape: tuple[int, ...], wanted: gguf.GGMLQuantizationType, head: bool
) -> gguf.GGMLQuantizationType:
    """Norms, biases and routers stay F32; the output head gets 8 bits where the rest gets fewer,

    as in llama.cpp's own mixes (which use Q6_K there); rows no block divides stay F16.
    """
    if len(shape) < 2 or _is_full(name):
        return _Type.F32
    if head and wanted in (_Type.Q4_0, _Type.Q4_1, _Type.Q5_0, _Type.Q5_1):
        wanted = _Type.Q8_0
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else _Type.F16


def _layout(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """The numpy type and shape in which a tensor of ``shape`` is stored."""
    if kind == _Type.F32:
        return np.float32, shape
    if kind == _Type.F16:
        return np.float16, shape
    return np.uint8, tuple(gguf.quants.quant_shape_to_byte_shape(shape, kind))


def _encode(name: str, value: Any, kind: gguf.GGMLQuantizationType) -> Any:
    plain = np.array(value.astype(mx.float32))
    if kind == _Type.F32:
        return plain
    if kind == _Type.F16:
        largest = float(np.abs(plain).max())
        if largest > _F16_MAX:
            raise BadInput(
                f"{name} holds {largest:.6g}, and f16 ends at {_F16_MAX:.0f}.", "Use type bf16."
            )
        return plain.astype(np.float16)
    return gguf.quants.quantize(plain, kind)
