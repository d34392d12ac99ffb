"""Checkpoints from which training goes on exactly: bit for bit on one machine.

A checkpoint is a folder, written under another name and renamed when complete:

=============================  ==================================================
``adapters.safetensors``       the trained weights
``adapter_config.json``        as mlx-lm writes it, so the folder is an adapter too
``optimizer.safetensors``      the optimizer's state
``gradients.safetensors``      only between two updates of an accumulation
``state.safetensors``          MLX's and numpy's generators, data order, running sums
``state.json``                 step, position in the data, trained tokens, best and guard
``<step>_adapters.safetensors``  the run's earlier checkpoints, so that none is lost with a worker
``best_adapters.safetensors``    the weights of the lowest validation loss so far
=============================  ==================================================
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from worker.engine.adapters import adapter_name, load_adapter, save_adapter
from worker.engine.data import Batches
from worker.engine.report import BadInput, write_json
from worker.engine.train.best import Best
from worker.engine.train.files import link
from worker.engine.train.guards import Course

#: Version of the layout above. 1 had neither best nor guard: a run goes on from it without.
FORMAT = 2


@dataclass(slots=True)
class Progress:
    """Where a run is. Sums run since the last report; ``saved`` is the last checkpoint's step."""

    step: int = 0
    losses: Any = field(default_factory=lambda: mx.array(0.0))
    tokens: Any = field(default_factory=lambda: mx.array(0))
    steps: int = 0
    seconds: float = 0.0
    trained_tokens: int = 0
    gradients: Any = None
    saved: int | None = None
    best: Best = field(default_factory=Best)
    course: Course = field(default_factory=Course)


def save(
    directory: Path, adapter: Path, model: Any, optimizer: Any, progress: Progress, batches: Batches
) -> None:
    """Write the checkpoint of ``progress.step`` to ``directory``.

    ``adapter`` is the run's adapter folder: its config and earlier checkpoints are linked in.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in adapter.glob("*_adapters.safetensors"):
        link(path, partial / path.name)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    write_json(partial / "adapter_config.json", config | {"step": progress.step})
    current = adapter / adapter_name(progress.step)
    if current.is_file():
        link(current, partial / "adapters.safetensors")
    else:
        save_adapter(model, partial / "adapters.safetensors")
    mx.save_safetensors(str(partial / "optimizer.safetensors"), dict(tree_flatten(optimizer.state)))
    if progress.gradients is not None:
        mx.save_safetensors(
            str(partial / "gradients.safetensors"), dict(tree_flatten(progress.gradients))
        )
    _save_state(partial, progress, batches)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _save_state(directory: Path, progress: Progress, batches: Batches) -> None:
    drawn = batches.state()
    arrays = {
        "mlx_rng": mx.random.state[0],
        **{f"batches.{name}": mx.array(array) for name, array in drawn["arrays"].items()},
        "losses": progress.losses,
        "tokens": progress.tokens,
    }
    mx.save_safetensors(str(directory / "state.safetensors"), arrays)
    scalars = {
        "format": FORMAT,
        "step": progress.step,
        "steps": progress.steps,
        "seconds": progress.seconds,
        "trained_tokens": progress.trained_tokens,
        "batches": drawn["scalars"],
        "best": asdict(progress.best),
        "course": asdict(progress.course),
    }
    write_json(directory / "state.json", scalars)


def restore(
    directory: Path, adapter: Path, model: Any, optimizer: Any, batches: Batches
) -> Progress:
    """Put a run back where ``save`` left it; return where that is.

    Raises BadInput when the folder is not a checkpoint of this run's shape.
    """
    try:
        scalars = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        arrays = mx.load(str(directory / "state.safetensors"))
        load_adapter(model, directory / "adapters.safetensors")
        optimizer.init(model.trainable_parameters())
        optimizer.state = _load_tree(directory / "optimizer.safetensors")
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"The checkpoint cannot be read: {error}.", "Retry the job without its checkpoints."
        ) from error
    high, low = arrays["mlx_rng"].tolist()
    mx.random.seed((high << 32) | low)
    drawn = {
        name.removeprefix("batches."): np.array(array)
        for name, array in arrays.items()
        if name.startswith("batches.")
    }
    batches.restore({"arrays": drawn, "scalars": scalars["batches"]})
    for path in directory.glob("*_adapters.safetensors"):
        link(path, adapter / path.name)
    gradients = directory / "gradients.safetensors"
    return Progress(
        step=scalars["step"],
        losses=arrays["losses"],
        tokens=arrays["tokens"],
        steps=scalars["steps"],
        seconds=scalars["seconds"],
        trained_tokens=scalars["trained_tokens"],
        gradients=_load_like(model, gradients) if gradients.is_file() else None,
        saved=scalars["step"],
        best=Best(**scalars.get("best", {})),
        course=Course(**scalars.get("course", {})),
    )


def _load_tree(path: Path) -> Any:
    return tree_unflatten(list(mx.load(str(path)).items()))


def _load_like(model: Any, path: Path) -> Any:
    """Load a gradient: a tree of the model's shape, whose empty branches no file keeps."""
    values = mx.load(str(path))
    return tree_map_with_path(lambda name, _: values[name], model.trainable_parameters())
