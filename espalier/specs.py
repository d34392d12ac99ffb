"""What a job is asked to do: one frozen spec per kind, one validation for form, API, CLI, YAML.

Keys, defaults and limits are mlx-lm 0.32.2's own (``mlx_lm/lora.py`` CONFIG_DEFAULTS,
``convert.py``, ``fuse.py``). Model, data and adapter are artifact references (espalier.refs)
where mlx-lm has paths.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from espalier.errors import InvalidInput
from espalier.refs import parse_ref
from espalier.reftypes import NameText, OutputRef, ProjectText, RefText
from espalier.states import Kind


class Frozen(BaseModel):
    """Immutable, and strict about keys: a misspelt flag is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
#: Rows of a batch that are computed together. It need not divide the batch: the last part is
#: smaller. More than the batch is the whole batch.
MicroBatch = Annotated[
    int | None,
    Field(ge=1, le=4096, description="rows computed at once; a batch is the sum of its parts"),
]
OnOom = Annotated[
    Literal["adapt", "fail"],
    Field(description="out of memory: hold less at once, same result; or fail"),
]


class TrainSpec(Frozen):
    """A fine-tune, as ``mlx_lm.lora --train`` runs it."""

    kind: Literal["train"] = "train"
    model: RefText = Field(description="base model")
    data: RefText = Field(description="data set with train and valid splits")
    fine_tune_type: Literal["lora", "dora", "full"] = "lora"
    optimizer: Optimizer = "adam"
    optimizer_config: dict[Optimizer, dict[str, bool | float | list[float]]] = {}
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


Spec = Annotated[
    TrainSpec | EvalSpec | QuantizeSpec | FuseSpec | ExportSpec, Field(discriminator="kind")
]
SPECS: dict[Kind, type[TrainSpec | EvalSpec | QuantizeSpec | FuseSpec | ExportSpec]] = {
    Kind.TRAIN: TrainSpec,
    Kind.EVAL: EvalSpec,
    Kind.QUANTIZE: QuantizeSpec,
    Kind.FUSE: FuseSpec,
    Kind.EXPORT: ExportSpec,
}

#: What a kind's main output is, and the suffix of its name when the user gives none.
OUTPUT_KIND = {
    Kind.TRAIN: "adapter",
    Kind.EVAL: "report",
    Kind.QUANTIZE: "model",
    Kind.FUSE: "model",
    Kind.EXPORT: "gguf",
}


class JobRequest(Frozen):
    """One submission: a spec and what surrounds it."""

    spec: Spec
    name: OutputRef | None = Field(None, description="where the output goes; made up if absent")
    project: ProjectText | None = Field(None, description="default: the project of `name`, or team")
    priority: int = Field(0, ge=-100, le=100, description="higher goes first")
    max_attempts: int = Field(3, ge=1, le=100)
    note: str = Field("", max_length=2000)


class PipelineStep(Frozen):
    """A job of a pipeline; its refs may be ``step:<name>`` of an earlier step."""

    step: NameText
    spec: Spec
    name: OutputRef | None = None


class PipelineRequest(Frozen):
    """Jobs submitted together, in one transaction: all or none."""

    name: NameText | None = None
    project: ProjectText | None = None
    priority: int = Field(0, ge=-100, le=100)
    max_attempts: int = Field(3, ge=1, le=100)
    note: str = Field("", max_length=2000)
    steps: tuple[PipelineStep, ...] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _steps_exist(self) -> "PipelineRequest":
        seen: set[str] = set()
        for item in self.steps:
            for role, ref in item.spec.refs().items():
                parsed = parse_ref(ref, project="x")
                step = getattr(parsed, "step", None)
                if step is not None and step not in seen:
                    raise ValueError(
                        f"step {item.step!r}: {role} is {ref}, but no earlier step is called"
                        f" {step!r}"
                    )
            if item.step in seen:
                raise ValueError(f"two steps are called {item.step!r}")
            seen.add(item.step)
        return self


T = TypeVar("T")
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def parse(cls: type[T], data: object) -> T:
    """Validate ``data`` into ``cls``; raise InvalidInput naming field, value and limit."""
    adapter = _ADAPTERS.setdefault(cls, TypeAdapter(cls))
    try:
        checked: T = adapter.validate_python(data)
    except ValidationError as error:
        raise invalid(error) from error
    return checked


def invalid(error: ValidationError) -> InvalidInput:
    """Turn pydantic's error into ours: one sentence a person can act on, and one per field."""
    faults = []
    for item in error.errors(include_url=False):
        kinds = set(SPECS)  # the discriminator appears in loc; people never typed it
        loc = [
            p
            for i, p in enumerate(item["loc"])
            if not (i and item["loc"][i - 1] == "spec" and p in kinds)
        ]
        message = item["msg"].removeprefix("Value error, ")
        value = item.get("input")
        shown = (
            ""
            if isinstance(value, dict | list | BaseModel) or item["type"] == "missing"
            else f" (got {value!r:.80})"
        )
        faults.append({"loc": loc, "msg": message + shown})
    first = faults[0]
    where = ".".join(str(p) for p in first["loc"])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidInput(
        f"{where}: {first['msg']}{more}" if where else f"{first['msg']}{more}", errors=faults
    )


#: Keys of an ``mlx_lm.lora --config`` file that say where files lie on one machine: the job
#: decides these itself.
_LOCAL_KEYS = frozenset({"train", "adapter_path", "config", "report_to", "project_name"})


def from_mlx_lm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``mlx_lm.lora --config`` mapping as the input of TrainSpec.

    Keys that only mean something on one machine are dropped, and so are nulls (mlx-lm's way of
    saying "default"). Raises InvalidInput for ``trust_remote_code: true``.
    """
    if config.get("trust_remote_code"):
        raise InvalidInput(
            "trust_remote_code is true: code from a model repository is not run here.",
            errors=[{"loc": ["trust_remote_code"], "msg": "must be false"}],
        )
    skip = _LOCAL_KEYS | {"trust_remote_code"}
    return {k: v for k, v in config.items() if k not in skip and v is not None}
