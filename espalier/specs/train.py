"""Fine-tunes: the keys, defaults and limits of ``mlx_lm/lora.py``, and what is ours."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from espalier.reftypes import RefText
from espalier.specs.base import Frozen, MicroBatch, OnOom, numbered
from espalier.specs.collection import Collection
from espalier.specs.optimizers import LrSchedule, Optimizer, OptimizerConfig
from espalier.specs.services import Services
from espalier.specs.sizes import Size


class LoraParameters(Frozen):
    """mlx-lm's ``lora_parameters``. ``keys`` are module names inside a layer."""

    rank: int = Field(8, ge=1, le=1024, description="LoRA rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    scale: float = Field(20.0, gt=0.0, le=10_000.0)
    keys: tuple[str, ...] | None = None


#: Where a row's text lies, when not under mlx-lm's own keys.
FEATURES = ("prompt_feature", "completion_feature", "text_feature", "chat_feature")
_PLAIN = frozenset({"model", "data", "adapter"})

Order = Annotated[
    Literal["shuffled", "bucketed", "mlx-lm"],
    Field(description="rows by (seed, epoch); of like length together; or as mlx_lm.lora draws"),
]
Keep = Annotated[
    Literal["best", "last"],
    Field(
        description="hand out the weights of the lowest validation loss, or of the last step (the"
        " default with order mlx-lm)"
    ),
]


class TrainSpec(Frozen):
    """A fine-tune, as ``mlx_lm.lora --train`` runs it."""

    kind: Literal["train"] = "train"
    model: RefText = Field(description="base model")
    data: RefText = Field(description="data set with train and valid splits")
    fine_tune_type: Literal["lora", "dora", "full"] = Field(
        "lora", description="low-rank adapters, those with magnitudes, or the weights themselves"
    )
    optimizer: Optimizer = "adam"
    optimizer_config: OptimizerConfig = Field({}, examples=['{"adamw": {"weight_decay": 0.01}}'])
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, dropout and order")
    num_layers: int = Field(16, ge=-1, description="layers to fine-tune, from the top; -1 is all")
    batch_size: int = Field(4, ge=1, le=4096, description="rows a step; sequences if packed")
    iters: int = Field(1000, ge=1, le=10_000_000, description="steps")
    val_batches: int = Field(25, ge=-1, description="-1 is the whole validation set")
    learning_rate: float = Field(1e-5, gt=0.0, le=10.0)
    steps_per_report: int = Field(10, ge=1, description="steps between train losses")
    steps_per_eval: int = Field(200, ge=1, description="steps between validations")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")
    keep: Keep = "best"
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after so many validations without improvement; empty: never"
    )
    early_stopping_min_delta: float = Field(
        0.0, ge=0.0, le=100.0, description="nats; what lowers the validation loss by less is none"
    )
    divergence_limit: float = Field(
        3.0,
        ge=0.0,
        le=1000.0,
        description="nats; stop when the smoothed train loss stays so far above its lowest; 0: off",
    )
    test: bool = Field(False, description="evaluate on the test split afterwards")
    test_batches: int = Field(500, ge=-1, description="-1 is the whole test set")
    max_seq_length: int = Field(2048, ge=8, le=1_048_576, description="tokens")
    grad_checkpoint: bool = Field(False, description="less memory, a third more time")
    grad_accumulation_steps: int = Field(
        1, ge=1, le=65_536, description="steps whose gradients make one update"
    )
    micro_batch_size: MicroBatch = None
    order: Order = "shuffled"
    packing: bool = Field(False, description="several rows a sequence, each seeing only itself")
    on_oom: OnOom = "adapt"
    clear_cache_threshold: Size = Field(0, ge=0, description="bytes, or 2GB")
    lr_schedule: LrSchedule | None = None
    lora_parameters: LoraParameters = LoraParameters()
    mask_prompt: bool = Field(False, description="learn completions and answers, not prompts")
    resume_adapter_file: RefText | None = Field(None, description="adapter to start from")
    prompt_feature: str | None = Field(None, description="the rows' key; default: prompt")
    completion_feature: str | None = Field(None, description="the rows' key; default: completion")
    text_feature: str | None = Field(None, description="the rows' key; default: text")
    chat_feature: str | None = Field(None, description="the rows' key; default: messages")
    hf_dataset: Collection = ()
    report_to: Services = None
    project_name: str | None = Field(
        None, min_length=1, max_length=128, description="the project there; default: ours"
    )

    @model_validator(mode="before")
    @classmethod
    def _data_of_collection(cls, given: Any) -> Any:
        """``hf_dataset`` names its own data; mlx-lm does not look at ``data`` then."""
        if not isinstance(given, dict) or given.get("data") or not given.get("hf_dataset"):
            return given
        listed = given["hf_dataset"]
        first = listed[0] if isinstance(listed, list | tuple) else listed
        path = first.get("path") if isinstance(first, dict) else getattr(first, "path", None)
        return {**given, "data": path} if path else given

    @model_validator(mode="after")
    def _one_collection(self) -> "TrainSpec":
        if not self.hf_dataset:
            return self
        if self.data != self.hf_dataset[0].path:
            raise ValueError(
                f"data is {self.data} and hf_dataset begins with {self.hf_dataset[0].path}: mlx-lm"
                " reads hf_dataset alone, so leave data out"
            )
        here = [key for key in FEATURES if getattr(self, key)]
        if here:
            raise ValueError(f"{here[0]} belongs into the entries of hf_dataset")
        without = [item.path for item in self.hf_dataset if self.test and not item.test_split]
        if without:
            raise ValueError(f"test is on, and hf_dataset names no test_split of {without[0]}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _as_upstream(cls, data: Any) -> Any:
        """What ``order: mlx-lm`` is compared with hands out the last weights."""
        if isinstance(data, Mapping) and data.get("order") == "mlx-lm":
            return {"keep": "last", **data}
        return data

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

    @model_validator(mode="after")
    def _validates(self) -> "TrainSpec":
        if self.early_stopping_patience is not None and self.val_batches == 0:
            raise ValueError(
                "early_stopping_patience counts validations, and val_batches 0 turns them off"
            )
        return self

    def refs(self) -> dict[str, str]:
        """Return role → reference of every input."""
        found = {"model": self.model, "data": self.data, "adapter": self.resume_adapter_file}
        further = {
            numbered("data", number): item.path for number, item in enumerate(self.hf_dataset, 1)
        }
        return {role: ref for role, ref in (found | further).items() if ref}

    def with_refs(self, changes: Mapping[str, str]) -> "TrainSpec":
        """Return it with other references, by role."""
        fields = {"adapter": "resume_adapter_file"}
        plain = {fields.get(role, role): ref for role, ref in changes.items() if role in _PLAIN}
        listed = tuple(
            item.model_copy(update={"path": changes.get(numbered("data", number), item.path)})
            for number, item in enumerate(self.hf_dataset, 1)
        )
        return self.model_copy(update={**plain, "hf_dataset": listed})
