"""Methods that learn how to round from what a model does to a text: mlx-lm's own modules.

Each changes a model in memory; their command lines, which fetch models and texts, are not used.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm.quant import awq, dwq, dynamic_quant, gptq

from espalier.specs.recipes import AWQ_TYPES, Recipe
from worker.engine.models import Loaded
from worker.engine.quantize.calibration import Calibration
from worker.engine.quantize.plain import cast_to, quantizable, round_off
from worker.engine.report import BadInput, Job

log = logging.getLogger("engine")

#: mlx-lm keeps the targets of this many tokens for DWQ; a smaller vocabulary has not so many.
_TARGETS = 1024


class _Meter:
    """Stands where mlx-lm's modules have ``tqdm``: the job hears of progress, and can be ended."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, items: Iterable[Any], total: int | None = None, **_: Any) -> "_Bar":
        return _Bar(self._job, items, total)

    def write(self, text: str) -> None:
        """Pass on what is printed; a method that made things worse says so with a warning."""
        if "WARNING" in text:
            said = " ".join(text.replace("❌", " ").replace("[WARNING]", " ").split())
            self._job.report.notice(said, "warning")
        else:
            log.info("%s", text)


class _Bar:
    """One loop of a method."""

    def __init__(self, job: Job, items: Iterable[Any], total: int | None) -> None:
        self._job = job
        self._items = items
        self._total = total if total is not None else len(items)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for done, item in enumerate(self._items, 1):
            self._job.orders.check()
            yield item
            self._job.report.progress(done, max(self._total, done), "steps")

    def set_description(self, **_: Any) -> None:
        """Losses of single steps are of no interest to anybody."""


def learn(
    job: Job, source: Callable[[], Loaded], recipe: Recipe, text: Calibration, scratch: Path
) -> Loaded:
    """Return the model that ``source`` opens, quantized by the recipe's method.

    ``scratch`` is a folder that may be filled. Raises BadInput for a model that the method does not
    know, Cancelled between steps.
    """
    method = {"awq": _awq, "gptq": _gptq, "dwq": _dwq, "dynamic_quant": _dynamic}[recipe.method]
    for module in (awq, gptq, dwq, dynamic_quant):
        module.tqdm = _Meter(job)
    return method(job, source, recipe, text, scratch)


def check_type(config: dict[str, Any], recipe: Recipe) -> None:
    """Raise BadInput for a model type whose layers AWQ does not know how to scale."""
    known = sorted(set(awq.AWQ_MODEL_CONFIGS) & set(AWQ_TYPES))
    if recipe.method == "awq" and config.get("model_type") not in known:
        raise BadInput(
            f"AWQ does not know the layers of model type {config.get('model_type')!r}; it knows"
            f" {', '.join(known)}.",
            "Use dwq or gptq, which know every model.",
        )


def _check_widths(model: Any, key: str, group_size: int) -> None:
    """Raise BadInput where a learned method would meet a layer that its groups do not divide."""
    wrong = [name for name, each in quantizable(model) if each.weight.shape[-1] % group_size]
    if wrong:
        raise BadInput(
            f"The width of {len(wrong)} layers does not divide by {key} {group_size}"
            f" ({', '.join(wrong[:3])}): this method quantizes all of them.",
            f"Use {key} 32, or method plain, which leaves such layers as they are.",
        )


def _open(source: Callable[[], Loaded], recipe: Recipe, keys: tuple[str, ...]) -> Loaded:
    loaded = source()
    if recipe.dtype:
        cast_to(loaded, recipe.dtype)
    for key in keys:
        _check_widths(loaded.model, key, getattr(recipe, key))
    return loaded


def _awq(
    job: Job, source: Callable[[], Loaded], recipe: Recipe, text: Calibration, scratch: Path
) -> Loaded:
    """Scale and clip what matters little, layer by layer, so that rounding hurts less."""
    loaded = _open(source, recipe, ("q_group_size", "embed_group_size"))
    check_type(loaded.config, recipe)
    awq.awq_quantize(
        loaded.model,
        text.pieces(recipe),
        awq.AWQ_MODEL_CONFIGS[loaded.config["model_type"]],
        group_size=recipe.q_group_size,
        bits=recipe.q_bits,
        embed_group_size=recipe.embed_group_size,
        embed_bits=recipe.embed_bits,
        n_grid=recipe.n_grid,
    )
    loaded.config = awq.update_config(loaded.model, loaded.config)
    return loaded


def _gptq(
    job: Job, source: Callable[[], Loaded], recipe: Recipe, text: Calibration, scratch: Path
) -> Loaded:
    """Round column by column, and let the columns that follow make up for it."""
    loaded = _open(source, recipe, ("q_group_size", "fallback_group_size"))
    loaded.model, loaded.config["quantization"] = gptq.gptq_quantize(
        loaded.model,
        text.pieces(recipe),
        recipe.q_bits,
        recipe.q_group_size,
        recipe.fallback_bits,
        recipe.fallback_group_size,
    )
    return loaded


def _dynamic(
    job: Job, source: Callable[[], Loaded], recipe: Recipe, text: Calibration, scratch: Path
) -> Loaded:
    """Give more bits to the layers that a gradient says are sensitive, up to a mean of bits."""
    loaded = _open(source, recipe, ("q_group_size", "high_group_size"))
    low = (recipe.q_bits, recipe.q_group_size)
    high = (recipe.high_bits, recipe.high_group_size)
    sensitivities = dict(
        dynamic_quant.estimate_sensitivities(
            loaded.model,
            text.pieces(recipe),
            *low,
            *high,
            gradient_checkpoint=recipe.grad_checkpoint,
        )
    )
    threshold = dynamic_quant.estimate_threshold(
        loaded.model, sensitivities, recipe.target_bpw, *low, *high
    )

    def predicate(path: str, module: Any) -> bool | dict[str, int]:
        if sensitivities[path] > threshold:
            return {"bits": recipe.high_bits, "group_size": recipe.high_group_size}
        return True

    round_off(loaded, recipe, predicate)
    return loaded


def _dwq(
    job: Job, source: Callable[[], Loaded], recipe: Recipe, text: Calibration, scratch: Path
) -> Loaded:
    """Tune scales and biases of a rounded model until it says what the original says."""
    spec: Any = job.task.spec
    size = min(spec.batch_size, recipe.samples) if recipe.samples > 0 else spec.batch_size
    train, valid = text.rows(recipe, size)
    loaded = _open(source, recipe, ("q_group_size",))
    targets = _dwq_targets(loaded, train, valid, scratch, size, recipe.length, spec.seed)
    dtype = _scales_dtype(loaded.model)
    # The targets are on disk, unless the vocabulary is tiny: then their function has the model.
    loaded = _open(source, recipe, ())
    round_off(loaded, recipe)
    mx.eval(loaded.model.parameters())
    dwq.dwq_quantize(
        loaded.model,
        targets,
        optim.Adam(learning_rate=recipe.learning_rate, bias_correction=True),
        train,
        valid,
        batch_size=size,
        max_seq_length=recipe.length,
        seed=spec.seed,
        dtype=dtype,
        gradient_checkpoint=recipe.grad_checkpoint,
    )
    return loaded


def _dwq_targets(
    loaded: Loaded,
    train: list[Any],
    valid: list[Any],
    scratch: Path,
    batch_size: int,
    length: int,
    seed: int,
) -> Callable[..., Any]:
    """Return mlx-lm's ``target_fn``: what the original says of a batch."""
    model = loaded.model
    if int(model(mx.array([[0]])).shape[-1]) <= _TARGETS:
        return lambda batch, index, split: model(batch)
    dwq.compute_dwq_targets(model, scratch, train, valid, batch_size, length, seed)

    def read(batch: Any, index: int, split: str) -> tuple[Any, Any]:
        kept = mx.load(str(scratch / split / f"{index:010d}.safetensors"))
        return kept["logits"], kept["indices"]

    return read


def _scales_dtype(model: Any) -> Any:
    """What scales and biases have after rounding: the dtype of the weights."""
    return quantizable(model)[0][1].weight.dtype
