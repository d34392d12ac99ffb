"""Writing base + adapters as one model, tensor after tensor; bit for bit what mlx_lm.fuse writes.

A quantized base is quantized again, its way: mlx-lm dequantizes a layer, adds the update, and
quantizes at the layer's own bits, group and mode, whatever the rest of the model has.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.utils import dequantize_model

from worker.engine import shards
from worker.engine.adapters import apply_adapter, read_weights
from worker.engine.fuse import merging
from worker.engine.fuse.merging import Part
from worker.engine.models import Loaded
from worker.engine.report import BadInput, Job


def plan(base: Path, parts: Sequence[Part]) -> Loaded:
    """Open the base as a plan with the adapters on it: nothing is read, all is checked.

    Raises BadInput for adapters that do not fit the base or each other.
    """
    loaded = shards.open_model(base)
    _refuse_odd_bits(loaded, parts)
    if len(parts) == 1 and parts[0].weight == 1:
        apply_adapter(loaded, parts[0].adapter, lazy=True)
    else:
        merging.attach(loaded, merging.merge(parts))
    _refuse_global_scales(loaded)
    return loaded


def write(
    loaded: Loaded, directory: Path, dequantize: bool, job: Job | None = None
) -> shards.Written:
    """Fuse a planned model and write it, as ``mlx_lm.fuse``; ``loaded`` is empty afterwards."""
    config = dict(loaded.config)
    loaded.model.update_modules(
        tree_unflatten(
            [
                (name, module.fuse(dequantize=dequantize))
                for name, module in loaded.model.named_modules()
                if hasattr(module, "fuse")
            ]
        )
    )
    if dequantize:
        dequantize_model(loaded.model)
        _refuse_left(loaded)
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    advance = (lambda done, total: job.advance(done, total, "bytes")) if job else None
    return shards.save_model(directory, loaded, config, advance)


def _refuse_odd_bits(loaded: Loaded, parts: Sequence[Part]) -> None:
    """mlx-lm's DoRA takes a quantized layer for narrower where bits do not divide 32."""
    for part in (part for part in parts if part.adapter.kind == "dora"):
        touched = {name.rpartition(".")[0] for name in read_weights(part.adapter.weights)}
        odd = [
            (name, module.bits)
            for name, module in _modules(loaded)
            if name in touched and isinstance(module, nn.QuantizedLinear) and 32 % module.bits
        ]
        if odd:
            raise BadInput(
                f"{part.name} is a DoRA, and mlx-lm has none for layers of {odd[0][1]} bits"
                f" ({len(odd)} of those it is for: {odd[0][0]}, …), only for 2, 4 and 8.",
                "Fuse into the unquantized model, and quantize what comes out.",
            )


def _refuse_global_scales(loaded: Loaded) -> None:
    """mlx-lm's fuse forgets an expert's global scale, and writes weights of another size."""
    found = [
        name
        for name, module in _modules(loaded)
        if hasattr(module, "fuse") and _inner(module).get("global_scale") is not None
    ]
    if found:
        raise BadInput(
            f"{len(found)} layers are nvfp4 with a global scale ({found[0]}, …), which mlx-lm"
            " cannot fuse into.",
            "Fuse into the unquantized model, and quantize what comes out.",
        )


def _refuse_left(loaded: Loaded) -> None:
    """Raise BadInput for quantized layers of a kind that mlx-lm does not dequantize."""
    left = [
        f"{name} ({type(module).__name__})"
        for name, module in _modules(loaded)
        if "scales" in module
    ]
    if left:
        raise BadInput(
            f"{len(left)} quantized layers cannot be dequantized by mlx-lm: {', '.join(left[:3])}"
            f"{', …' if len(left) > 3 else ''}.",
            "Leave dequantize off, or fuse into the unquantized model.",
        )


def _modules(loaded: Loaded) -> list[tuple[str, Any]]:
    return list(loaded.model.named_modules())


def _inner(module: Any) -> Any:
    return module.get("linear", module.get("embedding", {}))
