"""What is known of a job's inputs before it runs, and what a rule says about them."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from espalier import geometry
from espalier.adapterkeys import layer_keys
from espalier.geometry import Geometry, UnknownModel

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
#: The ends of an adapter's tensors; what is before them is the layer's name.
_ENDS = (".lora_a", ".lora_b", ".m")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason not to begin: the spec's field, a sentence, and the next step."""

    field: str
    message: str
    hint: str


#: What a rule gives: refusals, one by one.
Refusals = Iterator[Refusal]


@dataclass(frozen=True, slots=True)
class Model:
    """A model: its config.json, or what follows for one that is still to be made.

    ``identity`` are the digests of its weights, or the name of what will make it; ``tokenizer``
    reads its tokenizer.json, which only an export needs.
    """

    label: str
    config: Mapping[str, Any]
    identity: frozenset[str] = frozenset()
    tokenizer: Callable[[], Mapping[str, Any] | None] = lambda: None

    @property
    def type(self) -> str | None:
        found = self.config.get("model_type")
        return found if isinstance(found, str) else None

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        found = self.config.get("quantization") or self.config.get("quantization_config")
        return found if isinstance(found, Mapping) else None

    @property
    def bits(self) -> int | None:
        """Bits of its weights; None for a plain model, or one that does not say."""
        found = (self.quantization or {}).get("bits")
        return found if isinstance(found, int) else None

    @property
    def layers(self) -> int | None:
        found = self._text().get("num_hidden_layers")
        return found if isinstance(found, int) and found > 0 else None

    @property
    def context(self) -> int | None:
        """The tokens that it was made for."""
        found = self._text().get("max_position_embeddings")
        return found if isinstance(found, int) and found > 0 else None

    @property
    def experts(self) -> bool:
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        return any(self._text().get(name) for name in names)

    def _text(self) -> Mapping[str, Any]:
        """A model that also sees has the language's part inside."""
        inner = self.config.get("text_config")
        return {**self.config, **inner} if isinstance(inner, Mapping) else self.config

    def geometry(self) -> Geometry | None:
        """Its matrices, for architectures that are known by name."""
        try:
            return geometry.read(self.config)
        except UnknownModel:
            return None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter: what it is, and the layers that it has; ``keys`` None are all linear ones.

    ``shapes`` are those of its tensors by name, and ``steps`` those of its checkpoints: empty for
    an adapter that is still to be made.
    """

    label: str
    method: str
    rank: int | None
    keys: frozenset[str] | None
    blocks: frozenset[int] | None
    base: Model | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Data:
    """A data set as it was judged when it was published: rows by split, and their format."""

    label: str
    rows: Mapping[str, int]
    format: str | None = None
    features: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one job's inputs, by role; a role that is missing is not known."""

    models: Mapping[str, Model]
    adapters: Mapping[str, Adapter]
    data: Mapping[str, Data]

    @property
    def model(self) -> Model | None:
        return self.models.get("model")


def adapter_of(
    label: str,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    base: Model | None,
    steps: tuple[int, ...],
) -> Adapter:
    """Return what an adapter_config.json and the header of adapters.safetensors tell together.

    The tensors are believed: a config may have been copied from elsewhere.
    """
    named = {name[: -len(end)] for name in shapes for end in _ENDS if name.endswith(end)}
    parameters = config.get("lora_parameters")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    ranks = {shape[-1] for name, shape in shapes.items() if name.endswith(".lora_a") and shape}
    given = parameters.get("rank")
    rank = ranks.pop() if len(ranks) == 1 else given if isinstance(given, int) else None
    method = "dora" if any(name.endswith(".m") for name in shapes) else "lora" if named else "full"
    if not shapes:
        method = str(config.get("fine_tune_type") or "lora")
    keys = frozenset(layer_keys(sorted(named))[0]) if named else None
    blocks = frozenset(int(m[1]) for name in shapes if (m := _BLOCK.search(name)))
    return Adapter(label, method, rank, keys, blocks or None, base, shapes, steps)
