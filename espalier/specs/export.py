"""Exports: the format, and what its proof asks."""

from typing import Literal

from pydantic import Field, model_validator

from espalier.reftypes import RefText
from espalier.specs.base import Frozen, OnOom


class ExportSpec(Frozen):
    """A file other programs load, and the proof that they give the same tokens."""

    kind: Literal["export"] = "export"
    model: RefText
    data: RefText | None = Field(None, description="prompts for the token proof")
    format: Literal["gguf", "safetensors"] = "gguf"
    type: Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"] = "f16"
    proof_tokens: int = Field(24, ge=1, le=512, description="greedy tokens compared a prompt")
    min_token_match: float | None = Field(
        None, ge=0.0, le=1.0, description="fraction of tokens; refused below it. Default by type"
    )
    seed: int = Field(0, ge=0, lt=2**32)
    on_oom: OnOom = "adapt"

    @model_validator(mode="after")
    def _types(self) -> "ExportSpec":
        if self.format == "safetensors" and self.type not in ("f32", "f16", "bf16"):
            raise ValueError(
                f"type {self.type} is a GGUF type: safetensors holds f32, f16 or bf16"
                " (an MLX-quantized model is made by a quantize job)"
            )
        return self

    def refs(self) -> dict[str, str]:
        found = {"model": self.model, "data": self.data}
        return {role: ref for role, ref in found.items() if ref}
