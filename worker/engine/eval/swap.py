"""One base in memory, with and without its adapter, and with one checkpoint after another.

LoRA and DoRA layers hold the layer they were made from: taking them out and putting them back
copies nothing and leaves the base's numbers as they were, bit for bit. A full fine-tune writes
over the base's weights: its base can be had only before.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from worker.engine.adapters import Adapter, apply_adapter, load_adapter
from worker.engine.models import Loaded
from worker.engine.report import BadInput


class Swap:
    """A model that takes its adapter on and off. It begins as the base.

    Raises BadInput, before any work, for an adapter that does not fit the model.
    """

    def __init__(self, loaded: Loaded, adapter: Adapter) -> None:
        self._loaded, self._adapter = loaded, adapter
        self._full = adapter.config.get("fine_tune_type") == "full"
        self._base: list[tuple[str, Any]] = []
        self._tuned: list[tuple[str, Any]] = []
        if self._full:
            _check_weights(loaded.model, adapter.directory / "adapters.safetensors")
            return
        before = dict(loaded.model.named_modules())
        apply_adapter(loaded, adapter)
        after = dict(loaded.model.named_modules())
        changed = [name for name, module in before.items() if after.get(name) is not module]
        self._base = [(name, before[name]) for name in changed]
        self._tuned = [(name, after[name]) for name in changed]
        self._put(self._base)

    def tune(self) -> None:
        """Put the adapter on, with its last weights."""
        if self._full:
            apply_adapter(self._loaded, self._adapter)
        else:
            self._put(self._tuned)
            self.load(self._adapter.directory / "adapters.safetensors")

    def load(self, path: Path) -> None:
        """Give the tuned model the weights of a checkpoint; the base's stay where they are."""
        load_adapter(self._loaded.model, path)

    def _put(self, modules: list[tuple[str, Any]]) -> None:
        self._loaded.model.update_modules(tree_unflatten(modules))
        self._loaded.model.eval()


def _check_weights(model: Any, path: Path) -> None:
    """Raise BadInput when a full fine-tune's weights are not the model's. Reads headers only."""
    known = {name: value.shape for name, value in tree_flatten(model.parameters())}
    try:
        weights = mx.load(str(path))
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"The adapter cannot be read: {error}.") from error
    for name, value in weights.items():
        if known.get(name) != value.shape:
            raise BadInput(
                f"The adapter does not fit the model: {name} of shape {tuple(value.shape)}"
                f" {'has shape ' + str(tuple(known[name])) if name in known else 'does not exist'}"
                " in the model.",
                "Use the base model that the adapter was trained on.",
            )
