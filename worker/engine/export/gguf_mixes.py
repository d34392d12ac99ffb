"""K types: a GGUF file of floats made into one of ggml's mixes, in a process of its own.

``python -m worker.engine.export.gguf_mixes SOURCE TARGET TYPE`` reads a file that the writer made
and rounds its tensors by ggml's own code (llama_api.quantize_rows); which tensor gets which type
is llama.cpp's rule for the mix, compared tensor by tensor with what ``llama_model_quantize`` makes
when this was written. Where ``llama-quantize`` is installed it is asked instead. Imports no MLX.
"""

import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from worker.engine.export.llama_api import quantize_rows

_T = gguf.GGMLQuantizationType
_F = gguf.LlamaFileType
#: The mix → the type of most of its tensors, and what the file calls itself.
MIXES = {
    "q2_k": (_T.Q2_K, _F.MOSTLY_Q2_K),
    "q3_k_m": (_T.Q3_K, _F.MOSTLY_Q3_K_M),
    "q4_k_m": (_T.Q4_K, _F.MOSTLY_Q4_K_M),
    "q5_k_m": (_T.Q5_K, _F.MOSTLY_Q5_K_M),
    "q6_k": (_T.Q6_K, _F.MOSTLY_Q6_K),
}
#: What takes the place of a K type where 256 does not divide the rows.
_NARROW = {
    _T.Q2_K: _T.Q4_0,
    _T.Q3_K: _T.Q4_0,
    _T.Q4_K: _T.Q5_0,
    _T.Q5_K: _T.Q5_1,
    _T.Q6_K: _T.Q8_0,
}
#: Rows rounded at once, in elements.
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Shape:
    """What the rules ask of a model: layers, query heads for a head of keys, experts."""

    layers: int
    shared: int
    experts: int
    tied: bool


def type_of(name: str, shape: tuple[int, ...], mix: str, model: Shape) -> gguf.GGMLQuantizationType:
    """Return the type that llama.cpp gives a tensor (rows last) of a mix."""
    if len(shape) < 2 or "ffn_gate_inp" in name or not name.endswith(".weight"):
        return _T.F32
    head = name == ("token_embd.weight" if model.tied else "output.weight")
    wanted = _T.Q6_K if head else _wanted(name, mix, model)
    if shape[-1] % 256 == 0:
        return wanted
    if shape[-1] % 32:
        return _T.F16
    return _T.Q8_0 if head else _NARROW.get(wanted, wanted)


def _wanted(name: str, mix: str, model: Shape) -> gguf.GGMLQuantizationType:
    match = re.match(r"blk\.(\d+)\.(\w+)\.weight", name)
    plain = MIXES[mix][0]
    if match is None:
        return plain
    layer, part = int(match[1]), match[2]
    if part in ("attn_v", "attn_k") and model.experts == 8:
        return _T.Q8_0
    if mix == "q6_k":
        return plain
    if part in ("attn_v", "attn_qkv"):
        return _value(mix, layer, model)
    if part.startswith("ffn_down"):
        return _down(mix, layer, model)
    if part == "attn_output":
        if model.experts == 8:
            return _T.Q5_K
        return {"q2_k": _T.Q3_K, "q3_k_m": _T.Q4_K}.get(mix, plain)
    return plain


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _value(mix: str, layer: int, model: Shape) -> gguf.GGMLQuantizationType:
    if mix == "q2_k":
        return _T.Q4_K if model.shared >= 4 else _T.Q3_K
    if mix == "q3_k_m":
        return _T.Q5_K if layer < 2 else _T.Q4_K
    return _T.Q6_K if _more_bits(layer, model.layers) else MIXES[mix][0]


def _down(mix: str, layer: int, model: Shape) -> gguf.GGMLQuantizationType:
    if mix == "q2_k":
        return _T.Q3_K
    if mix == "q3_k_m":
        return _T.Q5_K if layer < model.layers // 16 else _T.Q4_K
    return _T.Q6_K if _more_bits(layer, model.layers) else MIXES[mix][0]


def installed() -> str | None:
    """The path of ``llama-quantize``, where it is installed."""
    return shutil.which("llama-quantize")


def convert(source: Path, target: Path, mix: str) -> None:
    """Write ``target`` as ``mix`` from a file of floats; raises llama_api.Missing, OSError."""
    logging.getLogger("gguf").setLevel(logging.WARNING)
    reader = gguf.GGUFReader(source)
    fields = reader.fields
    architecture = fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    _copy_fields(writer, fields)
    writer.add_file_type(MIXES[mix][1])
    names = {tensor.name for tensor in reader.tensors}
    shape = _shape(fields, architecture, "output.weight" not in names)
    kinds = []
    for tensor in reader.tensors:
        wide = tuple(int(n) for n in reversed(tensor.shape))
        kind = type_of(tensor.name, wide, mix, shape)
        stored: tuple[int, ...] = wide
        dtype: Any = {_T.F32: np.float32, _T.F16: np.float16}.get(kind, np.uint8)
        if dtype is np.uint8:
            stored = tuple(gguf.quants.quant_shape_to_byte_shape(wide, kind))
        size = int(np.prod(stored)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(tensor.name, stored, np.dtype(dtype), size, kind)
        kinds.append(kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in zip(reader.tensors, kinds, strict=True):
        writer.write_tensor_data(_rounded(tensor, kind))
    writer.close()


def _copy_fields(writer: Any, fields: Mapping[str, Any]) -> None:
    for name, field in fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)


def _shape(fields: Mapping[str, Any], architecture: str, tied: bool) -> Shape:
    def number(key: str) -> int:
        field = fields.get(f"{architecture}.{key}")
        return int(field.contents()) if field else 0

    heads, keys = number("attention.head_count"), number("attention.head_count_kv")
    return Shape(number("block_count"), heads // max(keys, 1), number("expert_count"), tied)


def _rounded(tensor: Any, kind: gguf.GGMLQuantizationType) -> Any:
    plain = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if kind == _T.F32:
        return plain.astype(np.float32)
    if kind == _T.F16:
        return plain.astype(np.float16)
    rows = plain.reshape(-1, plain.shape[-1])
    parts = [quantize_rows(int(kind), part) for part in _chunks(rows)]
    return np.concatenate(parts).reshape(*plain.shape[:-1], -1)


def _chunks(rows: Any) -> Iterator[Any]:
    step = max(1, _CHUNK // rows.shape[1])
    for begin in range(0, len(rows), step):
        yield rows[begin : begin + step]


def main() -> None:
    source, target, mix = sys.argv[1:]
    if tool := installed():
        done = subprocess.run([tool, source, target, mix.upper()], check=False)
        sys.exit(done.returncode)
    convert(Path(source), Path(target), mix)


if __name__ == "__main__":
    main()
