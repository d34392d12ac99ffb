"""Writing a model without holding it: tensor after tensor, into shards as mlx-lm cuts them.

MLX reads and computes nothing before it is asked to: a model that is loaded lazily, and changed by
mlx-lm's own functions (its layers fused, quantized, cast, stacked by ``sanitize``), is a plan. Here
the plan is carried out one tensor at a time: computed, written, dropped. In memory at once is what
one tensor is made of and made into (a quantized layer's weight, scales and biases come together),
whatever the model's size and whatever its architecture does to names while loading.

``mlx_lm.utils.save`` computes a shard (5 GiB) whole before it writes it; the values are the same.
"""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import create_model_card, get_total_parameters, make_shards, save_config

from worker.engine.models import Loaded, load_model

_DTYPES = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.uint16: "U16",
    mx.int16: "I16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.uint64: "U64",
    mx.int64: "I64",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.float32: "F32",
}
#: Parts of one layer, which are computed together.
_PARTS = frozenset({"weight", "scales", "biases", "bias", "global_scale"})


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: bytes of all tensors, of each shard, and of the largest layer."""

    total: int
    shards: tuple[int, ...]
    largest_group: int


def open_model(directory: Path) -> Loaded:
    """Load a model as a plan: nothing is read but headers. Raises BadInput as ``load_model``."""
    return load_model(directory, lazy=True)


def save_model(
    directory: Path,
    loaded: Loaded,
    config: dict[str, Any],
    advance: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a lazily loaded model, its config, tokenizer and card, as ``mlx_lm.utils.save`` does.

    Empties ``loaded.model``; nothing else may hold its arrays (modules it had, a list of fused
    ones), or they stay in memory once computed. ``advance(done, total)`` is called after each
    tensor, in bytes; what it raises ends the writing. Raises OSError when the disk is full.
    """
    model = loaded.model
    weights: dict[str, Any] = dict(tree_flatten(model.parameters()))
    # mlx-lm keeps the vision part of a config only for models that keep the part itself.
    vision = "vision_tower" in getattr(model, "model", {})
    parameters = int(get_total_parameters(model))
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    written = write_shards(directory, weights, parameters, advance)
    save_config(dict(config), directory / "config.json", keep_vision_config=vision)
    loaded.tokenizer.save_pretrained(directory)
    generation = loaded.directory / "generation_config.json"
    if generation.is_file():
        shutil.copy(generation, directory)
    create_model_card(directory, None)
    return written


def write_shards(
    directory: Path,
    weights: dict[str, Any],
    parameters: int,
    advance: Callable[[int, int], None] | None = None,
) -> Written:
    """Compute and write named arrays as ``model*.safetensors`` with their index.

    ``weights`` is emptied; ``parameters`` is the number the index tells. Shards are cut where
    ``mlx_lm.utils.save_model`` cuts them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    total = sum(int(value.nbytes) for value in weights.values())
    groups = group_bytes(weights)
    shards: list[dict[str, Any]] = make_shards(weights)
    weights.clear()
    sizes: list[int] = []
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        where |= dict.fromkeys(shard, name)
        told = partial(_tell, advance, sum(sizes), total) if advance else None
        sizes.append(sum(int(value.nbytes) for value in shard.values()))
        write_tensors(directory / name, shard, told)
    index = {
        "metadata": {"total_size": total, "total_parameters": parameters},
        "weight_map": dict(sorted(where.items())),
    }
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=4), encoding="utf-8")
    return Written(total, tuple(sizes), max(groups.values(), default=0))


def _tell(advance: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    advance(before + done, total)


def write_tensors(
    path: Path, tensors: dict[str, Any], advance: Callable[[int], None] | None = None
) -> None:
    """Write one safetensors file, each tensor computed when its turn comes; empties ``tensors``.

    ``advance(bytes)`` is told how much of the data is written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, value in tensors.items():
        begin, end = end, end + int(value.nbytes)
        header[name] = {
            "dtype": _DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    # Readers that map the file want the data aligned.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        done = 0
        for name in list(tensors):
            done += _write(file, tensors.pop(name))
            if advance:
                advance(done)


def _write(file: Any, value: Any) -> int:
    """Compute one array and write its bytes; return how many. Its memory is given back."""
    if not value.size:
        return 0
    flat = mx.contiguous(value).reshape(-1).view(mx.uint8)
    mx.eval(flat)
    size = int(file.write(memoryview(flat)))
    del flat, value
    mx.clear_cache()
    return size


def group_bytes(weights: dict[str, Any]) -> dict[str, int]:
    """Bytes of each layer's tensors together, by the layer's path. Computes nothing."""
    sizes: dict[str, int] = {}
    for name, value in weights.items():
        path, _, leaf = name.rpartition(".")
        key = path if leaf in _PARTS else name
        sizes[key] = sizes.get(key, 0) + int(value.nbytes)
    return sizes
