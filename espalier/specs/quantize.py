"""Quantizations: how many bits, and what they may cost."""

from collections import Counter
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from espalier.refs import NAME
from espalier.reftypes import RefText
from espalier.specs.base import Frozen, MicroBatch, OnOom
from espalier.specs.recipes import LEARNED, Recipe, Settings, inherit
from espalier.specs.sizes import parse_size

#: Characters of a variant's name: the artifact's is the job's name, a dash and this.
_NAME = 32


def _sized(value: Any) -> Any:
    """Keep a size as it was written, once it can be read: 4GB stays 4GB."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and parse_size(value) < 1:
        raise ValueError(f"{value!r} leaves no room for any model")
    return value


class _Inputs(Frozen):
    """What comes first in forms: a class of its own, because bases' fields precede a class's."""

    model: RefText
    data: RefText | None = None
    calibration: RefText | None = Field(
        None, description="data set that dwq, awq, gptq and dynamic_quant learn from"
    )
    variants: Settings = Field(
        (),
        max_length=32,
        description="several at once: bits, bits:group, a mode, a mixed recipe, method:bits:group",
        examples=["4, 8, 4:32, mxfp4, mixed_3_6, awq:4:64"],
    )


class QuantizeSpec(Recipe, _Inputs):
    """Fewer bits per weight, as ``mlx_lm.convert -q`` and mlx-lm's learned methods.

    With ``variants`` several are made and compared; each has the keys it names and inherits the
    others. ``data`` is the text that the price is measured on; without it the model's own data
    from its lineage is used, and without that, text sampled from the model itself.
    ``calibration`` is the text that learned methods learn from; without it, ``data``'s train split.
    """

    kind: Literal["quantize"] = "quantize"
    publish: Literal["all", "recommended"] = Field(
        "all", description="of several variants: all that hold their limits, or the best alone"
    )
    max_size: Annotated[str | None, BeforeValidator(_sized)] = Field(
        None, description="of the weights: 4GB, 500MB; refused above it"
    )
    max_perplexity_increase: float | None = Field(
        None, ge=0.0, description="fraction; refused above it. Default by bits"
    )
    requantize: bool = Field(
        False, description="a model that is quantized already: unpack it and quantize it again"
    )
    test_batches: int = Field(25, ge=-1)
    batch_size: int = Field(4, ge=1, le=4096)
    max_seq_length: int = Field(2048, ge=8, le=1_048_576)
    seed: int = Field(0, ge=0, lt=2**32)
    micro_batch_size: MicroBatch = None
    on_oom: OnOom = "adapt"

    @model_validator(mode="after")
    def _variants_fit(self) -> "QuantizeSpec":
        made = []
        for number, setting in enumerate(self.variants, 1):
            where = f"variant {number} ({_told(setting)})"
            try:
                recipe = inherit(setting, self.recipe)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                key = ".".join(map(str, first["loc"]))
                message = first["msg"].removeprefix("Value error, ")
                raise ValueError(f"{where}: {key + ': ' if key else ''}{message}") from error
            name = str(setting.get("name", recipe.label))
            if not NAME.fullmatch(name) or len(name) > _NAME or name == "model":
                raise ValueError(
                    f"{where}: {name!r} cannot name a variant: use at most {_NAME} letters,"
                    " digits, '.', '_' or '-'"
                )
            made.append(name)
        twice = [name for name, count in Counter(made).items() if count > 1]
        if twice:
            raise ValueError(
                f"two variants are called {twice[0]}: give one of them a name, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _can_be_done(self) -> "QuantizeSpec":
        if self.test_batches == 0:
            raise ValueError("test_batches 0 measures nothing: use −1 for all, or 1 and more")
        for name, recipe in self.recipes:
            if recipe.method in LEARNED and not (self.calibration or self.data):
                raise ValueError(
                    f"method {recipe.method} learns from text, and none is named: give calibration,"
                    " or data with a train split"
                )
            if recipe.method == "none" and not (recipe.dtype or self.requantize):
                raise ValueError(
                    f"{name}: method none changes the dtype only: name one (float16, bfloat16,"
                    " float32), or requantize to unpack a quantized model"
                )
        return self

    @property
    def recipe(self) -> Recipe:
        """The job's own recipe keys: the only variant, or what variants inherit."""
        # Not `model_dump`: it would look at every other key as well.
        return Recipe.model_construct(**{key: getattr(self, key) for key in Recipe.model_fields})

    @cached_property
    def recipes(self) -> tuple[tuple[str, Recipe], ...]:
        """What is to be made: (name, recipe) of each variant."""
        if not self.variants:
            return ((self.recipe.label, self.recipe),)
        made = [(setting, inherit(setting, self.recipe)) for setting in self.variants]
        return tuple((str(setting.get("name", recipe.label)), recipe) for setting, recipe in made)

    @property
    def label(self) -> str:
        """What a made-up name of the output ends with."""
        return "quantized" if self.variants else self.recipe.label

    @property
    def published(self) -> tuple[str, ...]:
        """The variants that become artifacts of their own, ``<name of the job>-<variant>``."""
        alone = not self.variants or self.publish == "recommended"
        return () if alone else tuple(name for name, _ in self.recipes)

    @property
    def size_limit(self) -> int | None:
        """``max_size`` in bytes."""
        return int(parse_size(self.max_size)) if self.max_size else None

    def refs(self) -> dict[str, str]:
        found = {"model": self.model, "data": self.data, "calibration": self.calibration}
        return {role: ref for role, ref in found.items() if ref}


def _told(setting: Any) -> str:
    return ":".join(f"{key}={value}" for key, value in setting.items()) or "the job's own keys"
