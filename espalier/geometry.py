"""The shape of a model, read from a ``config.json`` that anybody may have written.

Only what memory depends on (espalier.memory). Pure; a value that cannot be is a sentence, never a
crash and never a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

#: The largest of each number that a model may claim; the largest model known is far below.
_LIMITS = {
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
    "num_hidden_layers": 1 << 12,
    "vocab_size": 1 << 24,
    "num_local_experts": 1 << 12,
    "num_experts_per_tok": 1 << 12,
    "bits": 16,
    "group_size": 1 << 12,
}
#: What of a config.json is worth keeping.
KEYS = (
    "model_type",
    *(key for key in _LIMITS if key not in ("bits", "group_size")),
    "tie_word_embeddings",
    "torch_dtype",
    "dtype",
    "quantization",
    "quantization_config",
)
#: Bytes of a value by torch_dtype.
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: Dense decoders whose layers were measured (benchmarks/memory.py), and Mixtral's experts.
ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "mixtral"})
#: Those whose head is the embedding unless the config says otherwise.
_TIED = frozenset({"gemma"})


class UnknownModel(ValueError):
    """Nothing honest can be said of this model's memory; the text says why."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One matrix of a layer, [outputs, inputs], ``count`` times (experts)."""

    name: str
    inputs: int
    outputs: int
    count: int = 1

    @property
    def size(self) -> int:
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True)
class Geometry:
    """A decoder's sizes. ``width`` is bytes of an activation; ``bits`` 0 is not quantized."""

    architecture: str
    hidden: int
    inter: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int
    tied: bool
    width: int
    bits: int = 0
    group: int = 64
    experts: int = 0
    active: int = 1

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    def linears(self) -> tuple[Linear, ...]:
        """Return the matrices of one layer, by the names mlx-lm gives them."""
        h, f, q, k = self.hidden, self.inter, self.queries, self.keys
        if self.architecture == "phi3":
            return (
                Linear("self_attn.qkv_proj", h, q + 2 * k),
                Linear("self_attn.o_proj", q, h),
                Linear("mlp.gate_up_proj", h, 2 * f),
                Linear("mlp.down_proj", f, h),
            )
        attention = (
            Linear("self_attn.q_proj", h, q),
            Linear("self_attn.k_proj", h, k),
            Linear("self_attn.v_proj", h, k),
            Linear("self_attn.o_proj", q, h),
        )
        if self.experts:
            moe = "block_sparse_moe"
            return (
                *attention,
                Linear(f"{moe}.gate", h, self.experts),
                Linear(f"{moe}.switch_mlp.gate_proj", h, f, self.experts),
                Linear(f"{moe}.switch_mlp.up_proj", h, f, self.experts),
                Linear(f"{moe}.switch_mlp.down_proj", f, h, self.experts),
            )
        return (
            *attention,
            Linear("mlp.gate_proj", h, f),
            Linear("mlp.up_proj", h, f),
            Linear("mlp.down_proj", f, h),
        )

    def stored(self, elements: int) -> int:
        """Bytes of a matrix of so many elements, packed with scales and biases if quantized."""
        if not self.bits:
            return elements * self.width
        return elements * self.bits // 8 + 2 * self.width * (elements // self.group)

    @property
    def layer_elements(self) -> int:
        """Elements of one layer's matrices; norms and biases are a thousandth of them."""
        return sum(linear.size for linear in self.linears())

    @property
    def embedding_elements(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """Bytes of all weights as the config tells; a store knows them exactly."""
        return self.stored(self.layers * self.layer_elements + self.embedding_elements)

    @property
    def plain(self) -> "Geometry":
        """The same model, dequantized."""
        return replace(self, bits=0)


def read(config: Mapping[str, Any]) -> Geometry:
    """Return what ``config.json`` says. Raises UnknownModel naming the key and its value."""
    if not isinstance(config, Mapping):
        raise UnknownModel("config.json is not a JSON object")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnknownModel(
            f"the architecture {kind!r:.60} has not been measured; known are {known}"
        )
    heads = _number(config, "num_attention_heads")
    hidden = _number(config, "hidden_size")
    if "head_dim" not in config and hidden % heads:
        raise UnknownModel(f"hidden_size {hidden} does not divide by its {heads} heads")
    bits, group = _quantization(config)
    mixed = kind == "mixtral"
    return Geometry(
        architecture=kind,
        hidden=hidden,
        inter=_number(config, "intermediate_size"),
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads", heads),
        # Mixtral's and Phi-3's code in mlx-lm does not look at head_dim.
        head_dim=hidden // heads
        if kind in ("mixtral", "phi3")
        else _number(config, "head_dim", hidden // heads),
        layers=_number(config, "num_hidden_layers"),
        vocab=_number(config, "vocab_size"),
        tied=_flag(config, "tie_word_embeddings", kind in _TIED),
        width=_width(config),
        bits=bits,
        group=group,
        experts=_number(config, "num_local_experts", 8) if mixed else 0,
        active=_number(config, "num_experts_per_tok", 2) if mixed else 1,
    )


def _number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 1 <= value <= _LIMITS[key]:
        has = "is missing" if value is None else f"is {value!r:.60}"
        raise UnknownModel(f"{key} of config.json {has}; it counts from 1 to {_LIMITS[key]:,}")
    return value


def _first(config: Mapping[str, Any], *keys: str) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key)
    return value if isinstance(value, bool) else default


def _width(config: Mapping[str, Any]) -> int:
    """Bytes of a floating value; without a type in the config, the 2 of today's models."""
    name = _first(config, "torch_dtype", "dtype")
    name = "bfloat16" if name is None else name
    if not isinstance(name, str) or name not in BYTES:
        raise UnknownModel(
            f"torch_dtype of config.json is {name!r:.60}; known are {', '.join(BYTES)}"
        )
    return BYTES[name]


def _quantization(config: Mapping[str, Any]) -> tuple[int, int]:
    found = _first(config, "quantization", "quantization_config")
    if found is None or found == {}:
        return 0, 64
    if not isinstance(found, Mapping):
        raise UnknownModel(f"quantization of config.json is {found!r:.60}, not an object")
    return _number(found, "bits"), _number(found, "group_size", 64)


def kept(config: object) -> dict[str, Any]:
    """Return those keys of a config.json that ``read`` looks at, cut to what is worth storing."""
    if not isinstance(config, Mapping):
        return {}
    return {key: _cut(config[key]) for key in KEYS if config.get(key) is not None}


def _cut(value: Any) -> Any:
    if isinstance(value, Mapping):
        inner = {key: value.get(key) for key in ("bits", "group_size")} if value else {}
        return {k: "an object" if isinstance(v, Mapping) else _cut(v) for k, v in inner.items()}
    if type(value) is int:  # a number beyond what a database's JSON holds is no size of anything
        return value if abs(value) < 1 << 53 else str(value)[:60]
    if value is None:
        return None
    if isinstance(value, bool | float):
        return value if value == value and abs(value) < 1e300 else "not a number"
    return "".join(c for c in str(value)[:60] if c.isprintable())
