"""Fusing adapters into their base or into one adapter, and the limits of its proof."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from espalier.reftypes import RefText, check_ref
from espalier.specs.base import Frozen, MicroBatch, OnOom

#: Adapters of one fuse; each is read while it runs.
MAX_ADAPTERS = 16


def _as_text(given: object) -> object:
    """``{adapter: REF, weight: W}``, as people write it in YAML, as ``REF=W``."""
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - {"adapter", "weight"})
        if unknown or "adapter" not in given:
            raise ValueError(
                f"an adapter is {{adapter: REF, weight: NUMBER}}, not {dict(given)!r:.80}"
            )
        return f"{given['adapter']}={given.get('weight', 1)}"
    return given


def _is_weighted(text: str) -> str:
    ref, separator, number = text.partition("=")
    ref = check_ref(ref.strip())
    if not separator:
        return ref
    try:
        weight = float(number)
    except ValueError:
        raise ValueError(f"{number.strip()!r} is no weight: write {ref}=0.5") from None
    if not math.isfinite(weight) or weight == 0 or abs(weight) > 1000:
        raise ValueError(f"the weight {number.strip()} of {ref} is 0 or not between −1000 and 1000")
    return ref if weight == 1 else f"{ref}={weight:.12g}"


def _as_list(given: object) -> object:
    return [part.strip() for part in given.split(",")] if isinstance(given, str) else given


#: ``REF`` or ``REF=WEIGHT``.
WeightedRef = Annotated[
    str, Field(max_length=320), BeforeValidator(_as_text), AfterValidator(_is_weighted)
]


class FuseSpec(Frozen):
    """Adapters into base, as ``mlx_lm.fuse``, with the proof that nothing was lost on the way."""

    kind: Literal["fuse"] = "fuse"
    model: RefText
    adapter: RefText | None = Field(None, description="or several, by `adapters`")
    adapters: Annotated[
        tuple[WeightedRef, ...], BeforeValidator(_as_list), Field(max_length=MAX_ADAPTERS)
    ] = Field(
        (),
        description="several into one, each with its weight: REF=0.5, REF=0.5",
        examples=["team/a=0.5, team/b=0.5"],
    )
    output: Literal["model", "adapter"] = Field(
        "model", description="adapter: the adapters as one, their ranks side by side"
    )
    data: RefText | None = Field(None, description="held-out text for the proof")
    dequantize: bool = Field(False, description="write a plain model from a quantized base")
    max_kl: float = Field(0.01, gt=0.0, description="nats; refused above it")
    max_perplexity_difference: float = Field(0.01, gt=0.0, description="fraction")
    test_batches: int = Field(8, ge=1)
    batch_size: int = Field(4, ge=1, le=4096)
    max_seq_length: int = Field(2048, ge=8, le=1_048_576)
    seed: int = Field(0, ge=0, lt=2**32)
    micro_batch_size: MicroBatch = None
    on_oom: OnOom = "adapt"

    @model_validator(mode="after")
    def _one_way(self) -> "FuseSpec":
        if (self.adapter is None) == (not self.adapters):
            raise ValueError("name one adapter by `adapter`, or several by `adapters`")
        if self.output == "adapter" and self.dequantize:
            raise ValueError("dequantize writes a model, and output is adapter")
        return self

    def weighted(self) -> dict[str, tuple[str, float]]:
        """Return role → reference and weight of each adapter, in the order they were named."""
        named = self.adapters or (self.adapter or "",)
        roles = ("adapter", *(f"adapter_{number}" for number in range(2, len(named) + 1)))
        found = {}
        for role, text in zip(roles, named, strict=True):
            ref, _, weight = text.partition("=")
            found[role] = (ref, float(weight or 1))
        return found

    def refs(self) -> dict[str, str]:
        found = {"model": self.model, **{r: ref for r, (ref, _) in self.weighted().items()}}
        return found | ({"data": self.data} if self.data else {})

    def with_refs(self, refs: Mapping[str, str]) -> "FuseSpec":
        """Return this spec with the references of some roles replaced."""
        changes: dict[str, Any] = {k: v for k, v in refs.items() if k in ("model", "data")}
        adapters = {role: (refs.get(role, ref), w) for role, (ref, w) in self.weighted().items()}
        if self.adapters:
            texts = (f"{ref}={weight:.12g}" for ref, weight in adapters.values())
            changes["adapters"] = tuple(_is_weighted(text) for text in texts)
        else:
            changes["adapter"] = adapters["adapter"][0]
        return self.model_copy(update=changes)
