"""A tiny model and a data set, made once per session; every child is a real process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.textsql import write_dataset
from tests.integration.engine.child import Child, run_child, run_inside
from worker.engine import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny.make(directory, steps=80)
    return directory


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_dataset(directory, rows=120, seed=7)
    return directory


@pytest.fixture
def inputs(model: Path, dataset: Path) -> dict[str, Path]:
    return {"model": model, "data": dataset}


#: A short run with everything in it that draws random numbers.
SHORT: dict[str, Any] = {
    "iters": 24,
    "batch_size": 4,
    "num_layers": 2,
    "learning_rate": 3e-4,
    "steps_per_report": 5,
    "steps_per_eval": 10,
    "val_batches": 2,
    "save_every": 8,
    "seed": 3,
    "lora_parameters": {"rank": 4, "dropout": 0.1, "scale": 10.0},
    "optimizer": "adamw",
    "lr_schedule": {"name": "cosine_decay", "arguments": [3e-4, 40], "warmup": 4},
}


@pytest.fixture(scope="session")
def trained(model: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Child:
    """A run left alone."""
    return run_child(
        tmp_path_factory.mktemp("trained"), "train", SHORT, {"model": model, "data": dataset}
    )


@pytest.fixture
def child(tmp_path: Path) -> Callable[..., Child]:
    """Run a child in a folder of its own."""
    count = iter(range(100))

    def start(kind: str, spec: dict[str, Any], inputs: dict[str, Path], **more: Any) -> Child:
        return run_child(tmp_path / f"child{next(count)}", kind, spec, inputs, **more)

    return start


@pytest.fixture
def inside(tmp_path: Path) -> Callable[..., Child]:
    """Run a task in this process."""
    count = iter(range(100))

    def start(kind: str, spec: dict[str, Any], inputs: dict[str, Path], **more: Any) -> Child:
        return run_inside(tmp_path / f"inside{next(count)}", kind, spec, inputs, **more)

    return start


@pytest.fixture(scope="session")
def fused(
    model: Path, dataset: Path, trained: Child, tmp_path_factory: pytest.TempPathFactory
) -> Child:
    inputs = {"model": model, "adapter": trained.output("adapter"), "data": dataset}
    return run_child(tmp_path_factory.mktemp("fused"), "fuse", {}, inputs)


@pytest.fixture(scope="session")
def quantized(fused: Child, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Child:
    """The fused model at 4 bits."""
    inputs = {"model": fused.output("model"), "data": dataset}
    spec = {"q_bits": 4, "q_group_size": 32}
    return run_child(tmp_path_factory.mktemp("quantized"), "quantize", spec, inputs)
