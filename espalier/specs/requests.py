"""What is submitted: a spec with its surroundings, or several that feed each other."""

from typing import Annotated

from pydantic import Field, model_validator

from espalier.refs import parse_ref
from espalier.reftypes import NameText, OutputRef, ProjectText
from espalier.specs.base import Frozen
from espalier.specs.eval import EvalSpec
from espalier.specs.export import ExportSpec
from espalier.specs.fuse import FuseSpec
from espalier.specs.quantize import QuantizeSpec
from espalier.specs.train import TrainSpec
from espalier.states import Kind

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
