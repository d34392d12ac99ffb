"""Quantizations: how many bits, and what they may cost."""

from typing import Literal

from pydantic import Field, model_validator

from espalier.reftypes import RefText
from espalier.specs.base import Frozen, MicroBatch, OnOom


class QuantizeSpec(Frozen):
    """Fewer bits per weight, as ``mlx_lm.convert -q``, measured before and after.

    ``data`` is the text that perplexity is measured on; without it the model's own data from its
    lineage is used, and without that, text sampled from the model itself.
    """

    kind: Literal["quantize"] = "quantize"
    model: RefText
    data: RefText | None = None
    q_bits: int = Field(4, ge=2, le=8)
    q_group_size: Literal[32, 64, 128] = 64
    q_mode: Literal["affine"] = "affine"
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    max_perplexity_increase: float | None = Field(
        None, ge=0.0, description="fraction; refused above it. Default by bits"
    )
    test_batches: int = Field(25, ge=-1)
    batch_size: int = Field(4, ge=1, le=4096)
    max_seq_length: int = Field(2048, ge=8, le=1_048_576)
    seed: int = Field(0, ge=0, lt=2**32)
    micro_batch_size: MicroBatch = None
    on_oom: OnOom = "adapt"

    @model_validator(mode="after")
    def _bits(self) -> "QuantizeSpec":
        if self.q_bits == 7:
            raise ValueError("q_bits 7 has no kernel in MLX: use 2, 3, 4, 5, 6 or 8")
        return self

    def refs(self) -> dict[str, str]:
        found = {"model": self.model, "data": self.data}
        return {role: ref for role, ref in found.items() if ref}
