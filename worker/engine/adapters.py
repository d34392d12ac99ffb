"""Adapter folders as mlx-lm lays them out: config, last weights, and those of checkpoints."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from worker.engine.models import Loaded, read_json
from worker.engine.report import BadInput

_CHECKPOINT = re.compile(r"(\d{7,})_adapters\.safetensors")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder: its config, the step of its last weights, its checkpoints by step."""

    directory: Path
    config: dict[str, Any]
    step: int
    checkpoints: dict[int, Path]


def open_adapter(directory: Path) -> Adapter:
    """Read an adapter folder; raises BadInput when it is none."""
    for name in ("adapter_config.json", "adapters.safetensors"):
        if not (directory / name).is_file():
            raise BadInput(f"The adapter has no {name}.", "Name an adapter that mlx-lm can load.")
    config = read_json(directory / "adapter_config.json")
    found = {
        int(match[1]): path
        for path in sorted(directory.iterdir())
        if (match := _CHECKPOINT.fullmatch(path.name))
    }
    iters = config.get("iters")
    step = iters if isinstance(iters, int) else max(found, default=0)
    return Adapter(directory, config, step, found)


def apply_adapter(loaded: Loaded, adapter: Adapter) -> None:
    """Give the model the adapter's layers and its last weights; raises BadInput on a misfit."""
    kind = adapter.config.get("fine_tune_type", "lora")
    if kind != "full":
        try:
            linear_to_lora_layers(
                loaded.model,
                adapter.config["num_layers"],
                adapter.config["lora_parameters"],
                use_dora=kind == "dora",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"adapter_config.json does not describe an adapter: {type(error).__name__}"
                f" {error}.",
                "Name an adapter that mlx-lm can load.",
            ) from error
    load_adapter(loaded.model, adapter.directory / "adapters.safetensors")
    loaded.model.eval()
    mx.eval(loaded.model.parameters())


def adapter_name(step: int) -> str:
    """mlx-lm's file name for the adapter of a step."""
    return f"{step:07d}_adapters.safetensors"


def save_adapter(model: Any, path: Path) -> None:
    """Write the trainable weights, complete or not at all."""
    temporary = path.with_name(f".{path.name}.tmp.safetensors")
    mx.save_safetensors(str(temporary), dict(tree_flatten(model.trainable_parameters())))
    temporary.replace(path)


def load_adapter(model: Any, path: Path) -> None:
    """Load adapter weights into a model that has the layers for them.

    mlx-lm ignores names it does not find; here they raise BadInput, as do wrong shapes.
    """
    try:
        weights = mx.load(str(path))
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"The adapter cannot be read: {error}.") from error
    known = dict(tree_flatten(model.parameters()))
    for name, value in weights.items():
        if name not in known or known[name].shape != value.shape:
            has = f"has shape {tuple(known[name].shape)}" if name in known else "does not exist"
            raise BadInput(
                f"The adapter does not fit the model: {name} of shape {tuple(value.shape)} {has}"
                " in the model.",
                "Use the base model that the adapter was trained on.",
            )
    model.load_weights(list(weights.items()), strict=False)
