"""Several LoRA adapters on one base: as they are, one after the other, and as one of their ranks.

A LoRA adds ``scale · A B`` to a layer, so weighted adapters add ``Σ weight · scale · A B``: one
product again, of the A side by side and the B below each other. It is exact for any ranks, scales
and layers; a layer that only one adapter has keeps that one's rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import save_config

from espalier.adapterkeys import layer_keys
from worker.engine.adapters import Adapter, check_fit, read_weights
from worker.engine.models import Loaded
from worker.engine.report import BadInput

#: Where a LoRA layer of mlx-lm keeps the layer it adds to.
_INNER = {LoRALinear: "linear", LoRASwitchLinear: "linear", LoRAEmbedding: "embedding"}


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter of several: as it was named, its folder, and how much of it is wanted."""

    name: str
    adapter: Adapter
    weight: float

    @property
    def scale(self) -> float:
        return float(self.adapter.config["lora_parameters"]["scale"]) * self.weight


@dataclass(frozen=True, slots=True)
class Merged:
    """The LoRA that several make: (A, B) of each layer by its path, and their common scale.

    A is [in, rank] and B [rank, out]; of a layer of experts [experts, rank, in] and
    [experts, out, rank].
    """

    pairs: dict[str, tuple[Any, Any]]
    scale: float

    @property
    def rank(self) -> int:
        return max(_rank(a) for a, _ in self.pairs.values())


def check_mergeable(parts: Sequence[Part]) -> None:
    """Raise BadInput for what cannot be added up: DoRA and full fine-tunes."""
    for part in parts:
        kind = part.adapter.kind
        if kind == "dora":
            raise BadInput(
                f"{part.name} is a DoRA: its magnitudes scale whole rows of the weights they were"
                " trained with, so it cannot be added to other adapters or weighted.",
                "Fuse it alone first; then fuse the LoRA adapters into the model that this makes.",
            )
        if kind != "lora":
            raise BadInput(
                f"{part.name} is a {kind} fine-tune: it replaces weights and adds none.",
                "Fuse it alone first; then fuse the adapters into the model that this makes.",
            )
        if "scale" not in (part.adapter.config.get("lora_parameters") or {}):
            raise BadInput(
                f"The adapter_config.json of {part.name} has no lora_parameters.scale.",
                "Name an adapter that mlx-lm can load.",
            )


def merge(parts: Sequence[Part]) -> Merged:
    """Return the sum of LoRA adapters as one; nothing is computed yet. Raises BadInput."""
    check_mergeable(parts)
    scale = parts[0].scale
    sides: dict[str, list[tuple[Any, Any]]] = {}
    for part in parts:
        for path, (a, b) in _pairs(part):
            # At the common scale nothing is rounded; at another, B is widened first.
            fitted = b if part.scale == scale else b.astype(mx.float32) * (part.scale / scale)
            sides.setdefault(path, []).append((a, fitted))
    return Merged({path: _joined(path, found) for path, found in sides.items()}, scale)


def attach(loaded: Loaded, merged: Merged) -> None:
    """Give the model the merged LoRA's layers, by mlx-lm's own conversion. Raises BadInput.

    Layers may have different ranks, which mlx-lm's adapter files cannot say.
    """
    for rank in sorted({_rank(a) for a, _ in merged.pairs.values()}):
        paths = {path for path, (a, _) in merged.pairs.items() if _rank(a) == rank}
        config = {"rank": rank, "scale": merged.scale, "dropout": 0.0, "keys": paths}
        linear_to_lora_layers(loaded.model, 0, config)
    _load(loaded, dict(_named(merged.pairs)))


def stack(loaded: Loaded, parts: Sequence[Part]) -> dict[str, Any]:
    """Put the adapters over the model one over the other: each computed as it would be alone.

    The reference that a merged one is compared with; nothing is added up before. Returns the
    modules that were there, by path: ``loaded.model.update_modules`` takes the adapters off with
    them, as a tree.
    """
    before: dict[str, Any] = {}
    for part in parts:
        modules = dict(loaded.model.named_modules())
        wrapped = []
        for path, (a, b) in _pairs(part):
            if path not in modules:
                check_fit({f"{path}.lora_a": a.shape}, loaded.model)
            before.setdefault(path, modules[path])
            wrapped.append((path, _over(modules[path], a, b, part)))
        loaded.model.update_modules(tree_unflatten(wrapped))
    loaded.model.eval()
    return before


def write_adapter(merged: Merged, loaded: Loaded, directory: Path, model: str) -> dict[str, Any]:
    """Write the merged LoRA as an adapter that mlx-lm loads; return its config.

    An adapter file knows one rank: narrower layers are filled up, B with zeros, which add nothing,
    and A as mlx-lm begins it, so that the rest can still learn.
    """
    rank, key = merged.rank, mx.random.key(0)
    pairs = {path: _padded(a, b, rank, key) for path, (a, b) in merged.pairs.items()}
    keys, first = layer_keys(merged.pairs)
    layers = len(loaded.model.layers)
    config: dict[str, Any] = {
        "fine_tune_type": "lora",
        "num_layers": -1 if first in (None, 0) else layers - first,
        "lora_parameters": {
            "rank": rank,
            "scale": merged.scale,
            "dropout": 0.0,
            "keys": list(keys),
        },
        "model": model,
    }
    mx.save_safetensors(str(directory / "adapters.safetensors"), dict(_named(pairs)))
    save_config(dict(config), directory / "adapter_config.json")
    return config


# --- Tensors ------------------------------------------------------------------------------


def _pairs(part: Part) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield path, (A, B) of each layer; raises BadInput when one lacks the other."""
    weights = read_weights(part.adapter.weights)
    for name in weights:
        path, _, leaf = name.rpartition(".")
        other = {"lora_a": f"{path}.lora_b", "lora_b": f"{path}.lora_a"}.get(leaf)
        if other not in weights:
            raise BadInput(f"{part.name} has the tensor {name}, which is no half of a LoRA.")
        if leaf == "lora_a":
            yield path, (weights[name], weights[other])


def _named(pairs: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
    for path, (a, b) in pairs.items():
        yield f"{path}.lora_a", a
        yield f"{path}.lora_b", b


def _rank(a: Any) -> int:
    return int(a.shape[1])


def _joined(path: str, found: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    if len(found) == 1:
        return found[0]
    first = found[0][0]
    for a, b in found[1:]:
        outer = [(pair.shape[0], pair.shape[2:]) for pair in (first, a)]
        if outer[0] != outer[1] or _out(b) != _out(found[0][1]):
            raise BadInput(
                f"The adapters are for different models: {path} takes {_in(first)} and gives"
                f" {_out(found[0][1])} in one, {_in(a)} and {_out(b)} in another.",
                "Adapters of one base model can be merged.",
            )
    experts = first.ndim == 3
    return (
        mx.concatenate([a for a, _ in found], axis=1),
        mx.concatenate([b for _, b in found], axis=2 if experts else 0),
    )


def _in(a: Any) -> int:
    return int(a.shape[2] if a.ndim == 3 else a.shape[0])


def _out(b: Any) -> int:
    return int(b.shape[1])


def _padded(a: Any, b: Any, rank: int, key: Any) -> tuple[Any, Any]:
    more = rank - _rank(a)
    if not more:
        return a, b
    bound = _in(a) ** -0.5
    experts = a.ndim == 3
    shape = (a.shape[0], more, *a.shape[2:])
    wide = mx.random.uniform(-bound, bound, shape, key=key).astype(a.dtype)
    zeros = mx.zeros((*b.shape[:2], more) if experts else (more, b.shape[1]), b.dtype)
    return (
        mx.concatenate([a, wide], axis=1),
        mx.concatenate([b, zeros], axis=2 if experts else 0),
    )


def _load(loaded: Loaded, weights: dict[str, Any]) -> None:
    check_fit({name: value.shape for name, value in weights.items()}, loaded.model)
    loaded.model.load_weights(list(weights.items()), strict=False)
    loaded.model.eval()


def _over(module: Any, a: Any, b: Any, part: Part) -> Any:
    """Return a LoRA layer of mlx-lm over ``module``, which may be one itself."""
    inner = module
    while type(inner) in _INNER:
        inner = inner[_INNER[type(inner)]]
    if a.ndim == 3:
        over: Any = LoRASwitchLinear(a.shape[2], b.shape[1], a.shape[0], a.shape[1], 0, part.scale)
    elif isinstance(inner, nn.Embedding | nn.QuantizedEmbedding):
        over = LoRAEmbedding(a.shape[0], b.shape[1], a.shape[1], 0.0, part.scale)
    else:
        over = LoRALinear(a.shape[0], b.shape[1], a.shape[1], 0.0, part.scale)
    over[_INNER[type(over)]] = module
    over.lora_a, over.lora_b = a, b
    return over
