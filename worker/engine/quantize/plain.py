"""Rounding weights to fewer bits, as ``mlx_lm.convert``: planned first, then carried out in pieces.

Everything here changes a lazily loaded model (worker.engine.shards.open_model): nothing is read or
computed before it is written, and then layer by layer.
"""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import dequantize_model, quantize_model

from espalier.specs.recipes import Recipe
from worker.engine.models import Loaded
from worker.engine.report import BadInput, Job

_DTYPES = ("float16", "bfloat16", "float32")


def unpack(loaded: Loaded) -> None:
    """Turn a quantized model into a plain one; its config too. Raises BadInput for what cannot be.

    What the bits lost stays lost: these are the weights that the quantized model computes with.
    """
    dequantize_model(loaded.model)
    left = [name for name, module in loaded.model.named_modules() if hasattr(module, "bits")]
    if left:
        raise BadInput(
            f"{len(left)} quantized layers cannot be unpacked: {', '.join(left[:3])}.",
            "Quantize the model that was not quantized.",
        )
    for key in ("quantization", "quantization_config"):
        loaded.config.pop(key, None)


def convert(job: Job, loaded: Loaded, recipe: Recipe) -> None:
    """Plan what ``mlx_lm.convert`` does: cast, and quantize unless the method is none.

    Raises BadInput where no layer can be quantized. ``loaded`` has the new config afterwards.
    """
    predicate = _mixed(loaded.model, recipe)
    cast_to(loaded, recipe.dtype)
    if recipe.method == "none":
        return
    tell_left_out(job, loaded.model, recipe.q_group_size)
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


def tell_left_out(job: Job, model: Any, group_size: int) -> None:
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
        job.report.notice(
            f"{len(left)} of {len(layers)} layers keep their precision, because their width does"
            f" not divide by q_group_size {group_size}: {', '.join(left[:5])}"
            f"{'…' if len(left) > 5 else ''}",
            "warning",
        )


def quantizable(model: Any) -> list[tuple[str, Any]]:
    """Return (path, layer) of what MLX can quantize."""
    return [(name, each) for name, each in model.named_modules() if hasattr(each, "to_quantized")]
