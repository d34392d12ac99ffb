"""What a job is asked to do: one frozen spec per kind, one validation for form, API, CLI, YAML.

Keys, defaults and limits are mlx-lm 0.32.2's own (``mlx_lm/lora.py`` CONFIG_DEFAULTS,
``convert.py``, ``fuse.py``). Model, data and adapter are artifact references (espalier.refs)
where mlx-lm has paths.
"""

from espalier.specs.base import Frozen, MicroBatch, OnOom, numbered, plain_role
from espalier.specs.collection import HubData
from espalier.specs.eval import EvalSpec
from espalier.specs.export import ExportSpec
from espalier.specs.foreign import from_mlx_lm
from espalier.specs.fuse import FuseSpec
from espalier.specs.optimizers import LrSchedule, Optimizer
from espalier.specs.parsing import invalid, parse
from espalier.specs.quantize import QuantizeSpec
from espalier.specs.requests import (
    OUTPUT_KIND,
    SPECS,
    JobRequest,
    PipelineRequest,
    PipelineStep,
    Spec,
)
from espalier.specs.train import FEATURES, LoraParameters, Order, TrainSpec

__all__ = [
    "FEATURES",
    "OUTPUT_KIND",
    "SPECS",
    "EvalSpec",
    "ExportSpec",
    "Frozen",
    "FuseSpec",
    "HubData",
    "JobRequest",
    "LoraParameters",
    "LrSchedule",
    "MicroBatch",
    "OnOom",
    "Optimizer",
    "Order",
    "PipelineRequest",
    "PipelineStep",
    "QuantizeSpec",
    "Spec",
    "TrainSpec",
    "from_mlx_lm",
    "invalid",
    "numbered",
    "parse",
    "plain_role",
]
