"""Fusing adapters into their base, and the limits of its proof."""

from typing import Literal

from pydantic import Field

from espalier.reftypes import RefText
from espalier.specs.base import Frozen, MicroBatch, OnOom


class FuseSpec(Frozen):
    """Adapter into base, as ``mlx_lm.fuse``, with the proof that nothing was lost on the way."""

    kind: Literal["fuse"] = "fuse"
    model: RefText
    adapter: RefText
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

    def refs(self) -> dict[str, str]:
        found = {"model": self.model, "adapter": self.adapter, "data": self.data}
        return {role: ref for role, ref in found.items() if ref}
