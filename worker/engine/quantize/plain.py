"""Rounding weights to fewer bits, as ``mlx_lm.convert``: planned first, then carried out in pieces.

Everything here changes a lazily loaded model (worker.engine.shards.open_model): nothing is read or
computed before it is written, and then layer by layer.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import dequantize_model, quantize_model

from espalier.specs.recipes import Recipe
from worker.engine.models import Loaded
from worker.engine.report import BadInput

_DTYPES = ("float16", "bfloat16", "float32")


def unpack(loaded: Loaded) -> None:
    """Turn a quantized model into a plain one; its config too. Raises BadInput for what cannot be.

    What the bits lost stays lost: these are the weights that the quantized model computes with.
    """
    scaled = [name for name, each in loaded.model.named_modules() if "global_scale" in each]
    dequantize_model(loaded.model)
    # mlx-lm forgets global scales, and does not know every layer that can be quantized.
    left = scaled or [name for name, each in loaded.model.named_modules() if "scales" in each]
    if left:
        raise BadInput(
            f"{len(left)} quantized layers cannot be unpacked: {', '.join(left[:3])}.",
            "Quantize the model that was not quantized.",
        )
    for key in ("quantization", "quantization_config"):
        loaded.config.pop(key, None)


def convert(loaded: Loaded, recipe: Recipe, warn: Callable[[str], None]) -> None:
    """Plan what ``mlx_lm.convert`` does: cast, and quantize unless the method is none.

    ``loaded`` has the new config afterwards; ``warn`` is told of layers that are left out. Raises
    BadInput where no layer can be quantized.
    """
    predicate = _mixed(loaded.model, recipe)
    cast_to(loaded, recipe.dtype)
    if recipe.method == "none":
        return
    _tell_left_out(loaded.model, recipe.q_group_size, warn)
    round_off(loaded, recipe, predicate)


def round_off(loaded: Loaded, recipe: Recipe, predicate: Any = None) -> None:
    """Quantize by rounding alone, the layers that ``predicate`` or the model says."""
    loaded.model, loaded.config = quantize_model(
        loaded.model,
        loaded.config,
        recipe.q_group_size,
        recipe.q_bits,
        mode=recipe.q_mode,
        quant_predicate=predicate,
    )


def _mixed(model: Any, recipe: Recipe) -> Any:
    if recipe.quant_predicate is None:
        return None
    try:
        return mixed_quant_predicate_builder(recipe.quant_predicate, model, recipe.q_group_size)
    except ValueError as error:
        raise BadInput(
            f"{recipe.quant_predicate} gives more bits to layers called down_proj, and this model"
            " has none.",
            "Use a number of bits for all layers, or dynamic_quant.",
        ) from error


def cast_to(loaded: Loaded, dtype: str | None) -> None:
    """Convert as ``mlx_lm.convert`` does: to the dtype asked for, else to the config's own."""
    config = loaded.config
    if dtype:
        config["torch_dtype"] = dtype
    stored = config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    cast(loaded.model, dtype or stored)


def cast(model: Any, dtype: Any) -> None:
    """Convert a model's floating parameters; what is no name of a floating type is left."""
    if dtype not in _DTYPES:
        return
    wanted = getattr(mx, dtype)
    castable = getattr(model, "cast_predicate", lambda _: True)

    def convert(name: str, value: Any) -> Any:
        floating = mx.issubdtype(value.dtype, mx.floating)
        return value.astype(wanted) if floating and castable(name) else value

    model.update(tree_map_with_path(convert, model.parameters()))


def _tell_left_out(model: Any, group_size: int, warn: Callable[[str], None]) -> None:
    """Name the layers whose width no group divides; mlx-lm leaves them as they are, silently.

    Raises BadInput when that is all of them.
    """
    layers = quantizable(model)
    left = [name for name, module in layers if module.weight.shape[-1] % group_size]
    if len(left) == len(layers):
        raise BadInput(
            f"No layer's width divides by q_group_size {group_size}: nothing would be quantized.",
            "Use q_group_size 32." if group_size > 32 else "The model is too narrow.",
        )
    if left:
        warn(
            f"{len(left)} of {len(layers)} layers keep their precision, because their width does"
            f" not divide by q_group_size {group_size}: {', '.join(left[:5])}"
            f"{'…' if len(left) > 5 else ''}"
        )


def quantizable(model: Any) -> list[tuple[str, Any]]:
    """Return (path, layer) of what MLX can quantize."""
    return [(name, each) for name, each in model.named_modules() if hasattr(each, "to_quantized")]
