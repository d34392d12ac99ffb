"""One way to make a model smaller: method, bits, group, mode; and how several are written."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from espalier.specs.base import Frozen

Mode = Literal["affine", "mxfp4", "nvfp4", "mxfp8"]
Mixed = Literal["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]
Method = Literal["plain", "dwq", "awq", "gptq", "dynamic_quant", "none"]
DType = Literal["float16", "bfloat16", "float32"]
Bits = Literal[2, 3, 4, 5, 6, 8]
Group = Literal[32, 64, 128]

#: What MLX has kernels for, by mode: (group sizes, bits). Its own defaults come first.
KERNELS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((64, 32, 128), (4, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "nvfp4": ((16,), (4,)),
    "mxfp8": ((32,), (8,)),
}
#: Methods that look at what the model does to a text while they quantize it.
LEARNED = ("dwq", "awq", "gptq", "dynamic_quant")
#: Model types whose layers AWQ knows to scale: the keys of mlx-lm's AWQ_MODEL_CONFIGS.
AWQ_TYPES = (
    "deepseek_v2",
    "gemma3",
    "gemma3_text",
    "llama",
    "llava",
    "ministral3",
    "mistral",
    "mistral3",
    "qwen2",
    "qwen3",
)
#: Keys of one method alone.
_KEYS = {
    "dwq": ("learning_rate",),
    "awq": ("embed_bits", "embed_group_size", "n_grid"),
    "gptq": ("fallback_bits", "fallback_group_size"),
    "dynamic_quant": ("target_bpw", "high_bits", "high_group_size"),
}
_GPTQ_BITS = (2, 4, 8)
#: How much of the calibration text is read when nobody says: rows for DWQ, pieces for the others.
_SAMPLES = {"dwq": 2048}
_PIECES = 128
_LENGTH = {"dwq": 1025}


class Recipe(Frozen):
    """The keys of one variant; their names and defaults are mlx-lm's."""

    method: Method = Field(
        "plain",
        description="plain rounds; dwq, awq, gptq and dynamic_quant learn from calibration text;"
        " none only converts to dtype",
    )
    q_bits: int = Field(4, ge=2, le=8, description="bits a weight; mxfp8 has 8")
    q_group_size: Literal[16, 32, 64, 128] = Field(
        64, description="weights that share a scale; mxfp4 and mxfp8 have 32, nvfp4 16"
    )
    q_mode: Mode = Field("affine", description="how the bits are read")
    quant_predicate: Mixed | None = Field(
        None, description="mixed_3_6: 3 bits, and 6 where they matter most"
    )
    dtype: DType | None = Field(
        None, description="type of what is not quantized. Default: the model's own"
    )
    num_samples: int | None = Field(
        None,
        ge=-1,
        description="calibration pieces (awq, gptq, dynamic_quant: default 128) or rows (dwq:"
        " 2048); −1 all",
    )
    sequence_length: int | None = Field(
        None, ge=8, le=1_048_576, description="tokens of a calibration piece: default 512, dwq 1025"
    )
    learning_rate: float = Field(1e-6, gt=0.0, le=1.0, description="dwq: of scales and biases")
    grad_checkpoint: bool = Field(False, description="dwq, dynamic_quant: less memory, more time")
    embed_bits: Bits = Field(4, description="awq: bits of embedding and output layer")
    embed_group_size: Group = Field(32, description="awq: their group")
    n_grid: int = Field(20, ge=1, le=1000, description="awq: scales tried for each layer")
    fallback_bits: Bits = Field(6, description="gptq: bits of layers it cannot do")
    fallback_group_size: Group = Field(64, description="gptq: their group")
    target_bpw: float = Field(
        5.0, gt=1.0, le=16.0, description="dynamic_quant: bits per weight in the end"
    )
    high_bits: Bits = Field(5, description="dynamic_quant: bits of sensitive layers; others q_bits")
    high_group_size: Group = Field(64, description="dynamic_quant: their group")

    @model_validator(mode="before")
    @classmethod
    def _by_mode(cls, data: Any) -> Any:
        """Give a mode the bits and the group it has, where nothing else is said."""
        if not isinstance(data, Mapping) or data.get("q_mode") not in KERNELS:
            return data
        groups, bits = KERNELS[data["q_mode"]]
        given = {key: value for key, value in data.items() if value is not None}
        return {**data, "q_bits": bits[0], "q_group_size": groups[0]} | given

    @model_validator(mode="after")
    def _has_a_kernel(self) -> "Recipe":
        groups, bits = KERNELS[self.q_mode]
        if self.q_bits not in bits:
            mode = "" if self.q_mode == "affine" else f" for q_mode {self.q_mode}"
            raise ValueError(
                f"q_bits {self.q_bits} has no kernel in MLX{mode}: use {_either(bits)}"
            )
        if self.q_group_size not in groups:
            raise ValueError(
                f"q_group_size {self.q_group_size} has no kernel in MLX for q_mode {self.q_mode}:"
                f" use {_either(groups)}"
            )
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> "Recipe":
        if self.quant_predicate and (self.method, self.q_mode) != ("plain", "affine"):
            raise ValueError(
                f"quant_predicate {self.quant_predicate} is for method plain and q_mode affine"
                f" (here: {self.method}, {self.q_mode})"
            )
        if self.method in LEARNED and self.q_mode != "affine":
            raise ValueError(
                f"method {self.method} quantizes with q_mode affine only; {self.q_mode} takes"
                " method plain"
            )
        if self.method == "gptq" and self.q_bits not in _GPTQ_BITS:
            raise ValueError(f"method gptq packs q_bits {_either(_GPTQ_BITS)}, not {self.q_bits}")
        if self.method == "dwq" and self.q_bits == 8:
            raise ValueError(
                "method dwq tunes scales below 8 bits only: with q_bits 8 use method plain"
            )
        if self.method == "dynamic_quant":
            self._check_target()
        return self

    def _check_target(self) -> None:
        if self.high_bits <= self.q_bits:
            raise ValueError(
                f"high_bits {self.high_bits} must be more than q_bits {self.q_bits}: the layers"
                " that matter get the former"
            )
        # Scales and biases cost up to 2 × 32 bits a group.
        most = self.high_bits + 64 / self.high_group_size
        if not self.q_bits < self.target_bpw < most:
            raise ValueError(
                f"target_bpw {self.target_bpw:g} cannot be reached with q_bits {self.q_bits} and"
                f" high_bits {self.high_bits}: use more than {self.q_bits} and less than {most:g}"
            )

    @property
    def label(self) -> str:
        """A name people recognise, which can end an artifact's: ``q4``, ``awq-q4-g32``."""
        if self.method == "none":
            return self.dtype or "plain"
        if self.method == "dynamic_quant":
            return f"dynamic-{self.target_bpw:g}bpw"
        group = "" if self.q_group_size == KERNELS[self.q_mode][0][0] else f"-g{self.q_group_size}"
        if self.quant_predicate:
            return f"{self.quant_predicate}{group}"
        width = self.q_mode if self.q_mode != "affine" else f"q{self.q_bits}"
        method = "" if self.method == "plain" else f"{self.method}-"
        return f"{method}{width}{group}"

    def told(self) -> dict[str, Any]:
        """The keys that had a say in the result, for whoever wants to make it again."""
        if self.method == "none":
            return {"method": "none", "dtype": self.dtype}
        keys = ["method", "q_bits", "q_group_size", "q_mode", *_KEYS.get(self.method, ())]
        found = {key: getattr(self, key) for key in keys}
        if self.method in LEARNED:
            found |= {"num_samples": self.samples, "sequence_length": self.length}
        optional = {"quant_predicate": self.quant_predicate, "dtype": self.dtype}
        return found | {key: value for key, value in optional.items() if value}

    @property
    def samples(self) -> int:
        """How many pieces or rows of calibration text are read; −1 is all."""
        return self.num_samples or _SAMPLES.get(self.method, _PIECES)

    @property
    def length(self) -> int:
        """Tokens of a piece, or at most of a row, of calibration text."""
        return self.sequence_length or _LENGTH.get(self.method, 512)


def _either(values: tuple[int, ...]) -> str:
    *most, last = map(str, sorted(values))
    return f"{', '.join(most)} or {last}" if most else last


# --- Several ------------------------------------------------------------------------------

#: ``key=value`` pairs, or words that say which key they are of: ``awq:4:64``.
_WORDS: dict[str, str] = {
    **dict.fromkeys(get_args(Method), "method"),
    **dict.fromkeys(get_args(Mode), "q_mode"),
    **dict.fromkeys(get_args(Mixed), "quant_predicate"),
    **dict.fromkeys(get_args(DType), "dtype"),
}
_PAIR = re.compile(r"([a-z_]+)=(.+)")


def _setting(value: Any) -> Any:
    """Read a variant that was written as a word; leave everything else to pydantic."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return value
    found: dict[str, Any] = {}
    for part in value.strip().split(":"):
        pair = _PAIR.fullmatch(part)
        if pair:
            key, text = pair[1], _plain(pair[2])
        elif part.isdigit():
            key, text = ("q_group_size" if "q_bits" in found else "q_bits"), int(part)
        else:
            key, text = _WORDS.get(part, ""), part
        if not key or key in found:
            raise ValueError(
                f"{value!r} is not a variant: write bits or bits:group (4, 4:32), a mode"
                f" ({', '.join(get_args(Mode)[1:])}), a recipe ({', '.join(get_args(Mixed))}), a"
                " method before the bits (awq:4:64), a dtype (float16), or key=value:key=value"
            )
        found[key] = text
    if set(found) == {"dtype"}:
        found["method"] = "none"
    return found


def _plain(text: str) -> Any:
    """Return a number or a truth value for what reads as one: choices are strict about types."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | bool) else text


def _listed(value: Any) -> Any:
    """A text is a list of words: ``4, 8, mxfp4``."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


#: One variant: recipe keys, which go before the job's own, and perhaps a ``name``.
Setting = Annotated[dict[str, str | int | float | bool], BeforeValidator(_setting)]
Settings = Annotated[tuple[Setting, ...], BeforeValidator(_listed)]


def inherit(setting: Mapping[str, Any], base: Recipe) -> Recipe:
    """Return the recipe of a variant: its own keys, then those of the job, then its mode's.

    Raises pydantic's ValidationError (a ValueError) for keys and values that cannot be.
    """
    keys = {key: value for key, value in setting.items() if key != "name"}
    inherited = base.model_dump()
    if "q_mode" in keys and keys["q_mode"] != base.q_mode:
        # The job's bits and group are those of the job's mode.
        for key in ("q_bits", "q_group_size"):
            inherited.pop(key)
    if "method" in keys or "q_mode" in keys:
        inherited.pop("quant_predicate")
    if "quant_predicate" in keys:
        inherited |= {"method": "plain", "q_mode": "affine"}
    return Recipe.model_validate(inherited | keys)
