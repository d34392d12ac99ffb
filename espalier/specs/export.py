"""Exports: the format, and what its proof asks."""

from typing import Literal

from pydantic import Field, model_validator

from espalier.exporting import FLOATS, K_TYPES
from espalier.reftypes import RefText
from espalier.specs.base import Frozen, OnOom

GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0",
    "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k",
]  # fmt: skip


class ExportSpec(Frozen):
    """A file other programs load, and the proof that they give the same tokens."""

    kind: Literal["export"] = "export"
    model: RefText
    data: RefText | None = Field(None, description="prompts and held-out text for the proof")
    format: Literal["gguf", "safetensors"] = "gguf"
    type: GgufType = "f16"
    types: tuple[GgufType, ...] = Field(
        (), max_length=13, description="several GGUF files of one job, in place of type"
    )
    side_by_side: bool = Field(
        False, description="load each file's weights into MLX too, and measure both engines"
    )
    writer: Literal["own", "llama.cpp"] = Field(
        "own", description="who writes a GGUF; llama.cpp's own converter needs a worker that has it"
    )
    pre_tokenizer: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        max_length=64,
        description="llama.cpp's name for the pre-tokenizer, where it is not known here",
    )
    proof_prompts: int = Field(10, ge=1, le=100, description="prompts continued by both engines")
    proof_tokens: int = Field(24, ge=1, le=512, description="greedy tokens compared a prompt")
    min_token_match: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="fraction of tokens; refused below it. Default by type: marked below it",
    )
    max_perplexity_difference: float | None = Field(
        None, ge=0.0, description="relative to MLX's; refused above it. Default by type: marked"
    )
    seed: int = Field(0, ge=0, lt=2**32)
    on_oom: OnOom = "adapt"

    @model_validator(mode="after")
    def _types(self) -> "ExportSpec":
        if self.format == "gguf":
            self._check_gguf()
            return self
        if self.type not in FLOATS:
            raise ValueError(
                f"type {self.type} is a GGUF type: safetensors holds f32, f16 or bf16"
                " (an MLX-quantized model is made by a quantize job)"
            )
        for key, default in (
            ("types", ()), ("side_by_side", False), ("pre_tokenizer", None), ("writer", "own")
        ):  # fmt: skip
            if getattr(self, key) != default:
                raise ValueError(f"{key} is for GGUF: an export to safetensors has one type")
        return self

    def _check_gguf(self) -> None:
        if len(set(self.types)) != len(self.types):
            raise ValueError("types names one twice")
        if self.writer == "own":
            return
        if self.pre_tokenizer:
            raise ValueError("pre_tokenizer is for the own writer: llama.cpp's finds it by itself")
        if other := set(self.wanted) - {*FLOATS, "q8_0", *K_TYPES}:
            raise ValueError(
                f"llama.cpp's converter does not write {', '.join(sorted(other))}: use f32, f16,"
                " bf16, q8_0 or a K type"
            )

    @property
    def wanted(self) -> tuple[GgufType, ...]:
        """The types to write, in the order asked for."""
        return self.types or (self.type,)

    @property
    def k_types(self) -> tuple[str, ...]:
        return tuple(name for name in self.wanted if name in K_TYPES)

    def refs(self) -> dict[str, str]:
        found = {"model": self.model, "data": self.data}
        return {role: ref for role, ref in found.items() if ref}
