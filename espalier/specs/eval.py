"""Evaluations: of a model, an adapter, or every checkpoint of a run."""

from typing import Literal

from pydantic import Field, model_validator

from espalier.reftypes import RefText
from espalier.specs.base import Frozen, MicroBatch, OnOom


class EvalSpec(Frozen):
    """Test loss and perplexity, as ``mlx_lm.lora --test``; ``sweep`` tests every checkpoint."""

    kind: Literal["eval"] = "eval"
    model: RefText
    data: RefText
    adapter: RefText | None = None
    split: Literal["train", "valid", "test"] = "test"
    batch_size: int = Field(4, ge=1, le=4096)
    test_batches: int = Field(500, ge=-1, description="-1 is the whole split")
    max_seq_length: int = Field(2048, ge=8, le=1_048_576, description="tokens")
    mask_prompt: bool = False
    seed: int = Field(0, ge=0, lt=2**32)
    sweep: bool = Field(False, description="test every checkpoint of the adapter")
    compare_base: bool = Field(True, description="test the base without its adapter as well")
    micro_batch_size: MicroBatch = None
    on_oom: OnOom = "adapt"

    @model_validator(mode="after")
    def _sweep_needs_adapter(self) -> "EvalSpec":
        if self.sweep and not self.adapter:
            raise ValueError("sweep tests an adapter's checkpoints: name the adapter")
        return self

    def refs(self) -> dict[str, str]:
        found = {"model": self.model, "data": self.data, "adapter": self.adapter}
        return {role: ref for role, ref in found.items() if ref}
