"""Loading a model directory, and refusing one that could run code or cannot be read."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, get_total_parameters, load

from espalier.vetting import vet_folder
from worker.engine.report import BadInput


@dataclass(slots=True)
class Loaded:
    """A model in memory: the ``nn.Module``, its tokenizer, and its config as mlx-lm read it."""

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    directory: Path

    @property
    def quantization(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.config.get("quantization")
        return found


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; raise BadInput naming the file when it is not one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path.name} of the model cannot be read: {error}.") from error
    if not isinstance(document, dict):
        raise BadInput(f"{path.name} of the model is not a JSON object.")
    return document


def vet(directory: Path) -> dict[str, Any]:
    """Return the config of a model folder that mlx-lm can load and that holds data only.

    Raises InvalidInput (espalier.vetting) for code and pickles, BadInput for a missing config or
    weights and for an architecture mlx-lm does not have.
    """
    vet_folder(directory)
    if not (directory / "config.json").is_file():
        raise BadInput("The model has no config.json.", "Push the folder that mlx-lm loads.")
    config = read_json(directory / "config.json")
    if not any(directory.glob("model*.safetensors")):
        raise BadInput(
            "The model has no model*.safetensors.", "Push the folder that mlx_lm.convert wrote."
        )
    try:
        _get_classes(config)
    except (KeyError, ValueError) as error:
        raise BadInput(
            f"mlx-lm {version('mlx-lm')} does not know the model type"
            f" {config.get('model_type')!r} (config.json).",
            "A newer mlx-lm may.",
        ) from error
    return config


def load_model(directory: Path, lazy: bool = False) -> Loaded:
    """Vet and load a model; raise BadInput when its weights do not fit its config."""
    vet(directory)
    try:
        model, tokenizer, config = load(str(directory), lazy=lazy, return_config=True)
    except (KeyError, ValueError, TypeError, OSError, RuntimeError) as error:
        if "malloc" in str(error).lower():
            raise
        raise BadInput(
            f"The model cannot be loaded: {type(error).__name__}: {error}.",
            "Try mlx_lm.generate --model on the same folder; the traceback is in the log.",
        ) from error
    return Loaded(model, tokenizer, config, directory)


def weight_bytes(model: Any) -> int:
    """Bytes of all parameters, as they lie in memory."""
    return sum(int(value.nbytes) for _, value in tree_flatten(model.parameters()))


def dtype_of(model: Any) -> str:
    """The type most floating parameters have, by bytes: ``bfloat16``."""
    sizes: dict[str, int] = {}
    for _, value in tree_flatten(model.parameters()):
        if mx.issubdtype(value.dtype, mx.floating):
            name = str(value.dtype).removeprefix("mlx.core.")
            sizes[name] = sizes.get(name, 0) + int(value.nbytes)
    return max(sizes, key=lambda name: sizes[name], default="unknown")


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("mlx", "mlx-lm")}


def facts(loaded: Loaded) -> dict[str, Any]:
    """What a registry wants to know of a model: type, parameters, size, dtype, quantization."""
    return {
        "model_type": loaded.config.get("model_type"),
        "num_parameters": int(get_total_parameters(loaded.model)),
        "num_layers": len(loaded.model.layers),
        "weight_bytes": weight_bytes(loaded.model),
        "dtype": dtype_of(loaded.model),
        "quantization": loaded.quantization,
        "versions": versions(),
    }
