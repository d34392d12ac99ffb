"""Fine-tunes: the keys, defaults and limits of ``mlx_lm/lora.py``, and what is ours."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from espalier.reftypes import RefText
from espalier.specs.base import Frozen, MicroBatch, OnOom


class LoraParameters(Frozen):
    """mlx-lm's ``lora_parameters``. ``keys`` are module names inside a layer."""

    rank: int = Field(8, ge=1, le=1024, description="LoRA rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    scale: float = Field(20.0, gt=0.0, le=10_000.0)
    keys: tuple[str, ...] | None = None


class LrSchedule(Frozen):
    """mlx-lm's ``lr_schedule``: a function of ``mlx.optimizers`` with its positional arguments."""

    name: Literal["cosine_decay", "exponential_decay", "step_decay", "linear_schedule"]
    arguments: tuple[float, ...] = Field(min_length=1, max_length=4)
    warmup: int = Field(0, ge=0)
    warmup_init: float = Field(0.0, ge=0.0)


Order = Annotated[
    Literal["shuffled", "bucketed", "mlx-lm"],
    Field(description="rows by (seed, epoch); of like length together; or as mlx_lm.lora draws"),
]
Optimizer = Literal["adam", "adamw", "muon", "sgd", "adafactor"]


class TrainSpec(Frozen):
    """A fine-tune, as ``mlx_lm.lora --train`` runs it."""

    kind: Literal["train"] = "train"
    model: RefText = Field(description="base model")
    data: RefText = Field(description="data set with train and valid splits")
    fine_tune_type: Literal["lora", "dora", "full"] = "lora"
    optimizer: Optimizer = "adam"
    optimizer_config: dict[Optimizer, dict[str, bool | float | list[float]]] = Field({})
    seed: int = Field(0, ge=0, lt=2**32)
    num_layers: int = Field(16, ge=-1, description="layers to fine-tune, from the top; -1 is all")
    batch_size: int = Field(4, ge=1, le=4096)
    iters: int = Field(1000, ge=1, le=10_000_000)
    val_batches: int = Field(25, ge=-1, description="-1 is the whole validation set")
    learning_rate: float = Field(1e-5, gt=0.0, le=10.0)
    steps_per_report: int = Field(10, ge=1)
    steps_per_eval: int = Field(200, ge=1)
    save_every: int = Field(100, ge=1, description="steps between checkpoints")
    test: bool = Field(False, description="evaluate on the test split afterwards")
    test_batches: int = Field(500, ge=-1, description="-1 is the whole test set")
    max_seq_length: int = Field(2048, ge=8, le=1_048_576, description="tokens")
    grad_checkpoint: bool = False
    grad_accumulation_steps: int = Field(1, ge=1, le=65_536)
    micro_batch_size: MicroBatch = None
    order: Order = "shuffled"
    packing: bool = Field(False, description="several rows a sequence, each seeing only itself")
    on_oom: OnOom = "adapt"
    clear_cache_threshold: int = Field(0, ge=0, description="bytes")
    lr_schedule: LrSchedule | None = None
    lora_parameters: LoraParameters = LoraParameters()
    mask_prompt: bool = False
    resume_adapter_file: RefText | None = Field(None, description="adapter to start from")
    prompt_feature: str | None = None
    completion_feature: str | None = None
    text_feature: str | None = None
    chat_feature: str | None = None

    @model_validator(mode="after")
    def _layers(self) -> "TrainSpec":
        if self.num_layers == 0:
            raise ValueError("num_layers is 0: no layer would be trained; use -1 for all")
        return self

    @model_validator(mode="after")
    def _packs(self) -> "TrainSpec":
        if self.packing and self.order != "shuffled":
            raise ValueError(
                f"packing fills sequences with shuffled rows: order {self.order} cannot be kept"
            )
        return self

    def refs(self) -> dict[str, str]:
        """Return role → reference of every input."""
        found = {"model": self.model, "data": self.data, "adapter": self.resume_adapter_file}
        return {role: ref for role, ref in found.items() if ref}
