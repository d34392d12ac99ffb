"""Adapter folders as mlx-lm lays them out: config, last weights, and those of checkpoints."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from espalier.peft import PEFT_WEIGHTS
from worker.engine.models import Loaded, read_json
from worker.engine.report import BadInput

#: What LoRA and DoRA layers add, as mlx-lm calls it.
_LEAVES = frozenset({"lora_a", "lora_b", "m"})
_CHECKPOINT = re.compile(r"(\d{7,})_adapters\.safetensors")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder: its config, the step of its last weights, its checkpoints by step."""

    directory: Path
    config: dict[str, Any]
    step: int
    checkpoints: dict[int, Path]

    @property
    def kind(self) -> str:
        """``lora``, ``dora`` or ``full``."""
        return str(self.config.get("fine_tune_type", "lora"))

    @property
    def weights(self) -> Path:
        return self.directory / "adapters.safetensors"


def open_adapter(directory: Path) -> Adapter:
    """Read an adapter folder; raises BadInput when it is none."""
    hint = "Name an adapter that mlx-lm can load."
    if (directory / PEFT_WEIGHTS).is_file():
        hint = "It is PEFT's: `espalier adapter import` makes one of it that mlx-lm can load."
    for name in ("adapter_config.json", "adapters.safetensors"):
        if not (directory / name).is_file():
            raise BadInput(f"The adapter has no {name}.", hint)
    config = read_json(directory / "adapter_config.json")
    found = {
        int(match[1]): path
        for path in sorted(directory.iterdir())
        if (match := _CHECKPOINT.fullmatch(path.name))
    }
    step = config.get("step", config.get("iters"))
    step = step if isinstance(step, int) else max(found, default=0)
    return Adapter(directory, config, step, found)


def apply_adapter(loaded: Loaded, adapter: Adapter, lazy: bool = False) -> None:
    """Give the model the adapter's layers and its last weights; raises BadInput on a misfit.

    ``lazy``: nothing is computed, for a model that was opened as a plan (worker.engine.shards).
    """
    if adapter.kind != "full":
        _refuse_base_weights(adapter)
        try:
            linear_to_lora_layers(
                loaded.model,
                adapter.config["num_layers"],
                adapter.config["lora_parameters"],
                use_dora=adapter.kind == "dora",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"adapter_config.json does not describe an adapter: {type(error).__name__}"
                f" {error}.",
                "Name an adapter that mlx-lm can load.",
            ) from error
    load_adapter(loaded.model, adapter.weights)
    loaded.model.eval()
    if not lazy:
        mx.eval(loaded.model.parameters())


def _refuse_base_weights(adapter: Adapter) -> None:
    """An adapter adds to a model; one that brings the model's own weights is none."""
    names = [n for n in read_weights(adapter.weights) if n.rpartition(".")[2] not in _LEAVES]
    if names:
        raise BadInput(
            f"The adapter is a {adapter.kind}, and {len(names)} of its tensors are no part of one:"
            f" {', '.join(names[:3])}{', …' if len(names) > 3 else ''}.",
            "A full fine-tune says fine_tune_type full in its adapter_config.json.",
        )


def adapter_name(step: int) -> str:
    """mlx-lm's file name for the adapter of a step."""
    return f"{step:07d}_adapters.safetensors"


def save_adapter(model: Any, path: Path) -> None:
    """Write the trainable weights, complete or not at all."""
    temporary = path.with_name(f".{path.name}.tmp.safetensors")
    mx.save_safetensors(str(temporary), dict(tree_flatten(model.trainable_parameters())))
    temporary.replace(path)


def read_weights(path: Path) -> dict[str, Any]:
    """Return the arrays of a safetensors file, not read yet; raises BadInput."""
    try:
        found: dict[str, Any] = mx.load(str(path))
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"The adapter cannot be read: {error}.") from error
    return found


def load_adapter(model: Any, path: Path) -> None:
    """Load adapter weights into a model that has the layers for them.

    mlx-lm ignores names it does not find; here they raise BadInput, as do wrong shapes.
    """
    weights = read_weights(path)
    check_fit({name: value.shape for name, value in weights.items()}, model)
    model.load_weights(list(weights.items()), strict=False)


def check_fit(shapes: Mapping[str, Sequence[int]], model: Any) -> None:
    """Raise BadInput naming what an adapter has that the model has not, or in another size."""
    known = {name: value.shape for name, value in tree_flatten(model.parameters())}
    foreign = [name for name in shapes if name not in known]
    sized = [n for n in shapes if n in known and tuple(known[n]) != tuple(shapes[n])]
    if not foreign and not sized:
        return
    faults = []
    if foreign:
        faults.append(f"{_some(foreign)} {_of(foreign, shapes)} not in the model")
    if sized:
        first = sized[0]
        faults.append(
            f"{_of(sized, shapes)} of another size: {first} has shape {tuple(shapes[first])}, in"
            f" the model {tuple(known[first])}"
        )
    raise BadInput(
        f"The adapter does not fit the model: {'; '.join(faults)}.",
        "Use the base model that the adapter was trained on.",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …:" if len(names) > 3 else ":")


def _of(names: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> str:
    return f"{len(names)} of its {len(shapes)} tensors {'is' if len(names) == 1 else 'are'}"
