"""An eval's base, kept for the next eval on the same one: everything else begins anew.

What a job may do to a model is undone: every module, every array and every flag is the object
that it was when the base had just been loaded, with the same bits, or the base is not kept. The
tokenizer is read again, the config copied; generators, environment and working directory are set
back. A process in which a job left a thread or a process behind is not used again. Only the worker
knows that two jobs have the same base, blob by blob; it sends no other job here.
"""

import copy
import json
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import psutil
from mlx.utils import tree_flatten
from mlx_lm.utils import load_tokenizer

from espalier.specs import EvalSpec
from worker.engine.measure import seed_everything
from worker.engine.models import Loaded, load_model, vet
from worker.engine.report import Job, log


@dataclass(slots=True)
class _State:
    """One module: its own entries, and what is not an entry."""

    module: Any
    entries: dict[str, Any]
    attributes: dict[str, Any]


def _snapshot(value: Any) -> Any:
    """Return ``value`` with containers copied, and modules and arrays as they are."""
    if type(value) is list:
        return [_snapshot(item) for item in value]
    if type(value) is dict:
        return {key: _snapshot(item) for key, item in value.items()}
    return value


class _Base:
    """A loaded model and what it was like."""

    def __init__(self, loaded: Loaded, listing: dict[str, Any]) -> None:
        self.model, self.listing = loaded.model, listing
        self.config = copy.deepcopy(loaded.config)
        self._states = [
            _State(module, _entries(module), _attributes(module))
            for _, module in loaded.model.named_modules()
        ]
        self._bits = _bits(loaded.model)
        self._classes = {
            type(state.module): dict(vars(type(state.module))) for state in self._states
        }

    def undo(self) -> bool:
        """Put everything back; say whether it is all as it was."""
        for kind, members in self._classes.items():
            if dict(vars(kind)) != members:
                return False  # patched for good, as grad_checkpoint does
        for state in self._states:
            dict.clear(state.module)
            dict.update(state.module, _snapshot(state.entries))
            state.module.__dict__.clear()
            state.module.__dict__.update(_snapshot(state.attributes))
        return _bits(self.model) == self._bits


def _bits(model: Any) -> list[int]:
    """Return a sum over the words of each array: an array may be written to where it is."""
    sums = []
    for _, value in tree_flatten(model.parameters()):
        flat = value.reshape(-1)
        words = flat.view(mx.uint32) if value.nbytes % 4 == 0 else flat.view(mx.uint8)
        sums.append(mx.sum(words.astype(mx.uint32)))
        mx.eval(sums[-1])
    return [int(one.item()) for one in sums]


def _entries(module: Any) -> dict[str, Any]:
    return {key: _snapshot(value) for key, value in dict.items(module)}


def _attributes(module: Any) -> dict[str, Any]:
    """Flags such as training and what is frozen; sets are copied, since freezing changes them."""
    return {
        key: set(value) if isinstance(value, set) else _snapshot(value)
        for key, value in vars(module).items()
    }


_base: _Base | None = None


def base(job: Job) -> Loaded:
    """Load the eval's model, or take the one that an earlier job of this process left.

    Either way every generator then stands where the job's seed puts it: to make a model draws
    numbers, which weights from a file replace.
    """
    spec = job.task.spec
    assert isinstance(spec, EvalSpec)
    loaded = _base_of(job)
    seed_everything(spec.seed)
    return loaded


def _base_of(job: Job) -> Loaded:
    global _base
    directory = job.need("model")
    held, _base = _base, None
    listing = _listing(directory)
    if held is not None and held.listing == listing:
        vet(directory)
        log.info("the base is in memory already")
        tokenizer = load_tokenizer(directory, eos_token_ids=held.config.get("eos_token_id"))
        loaded = Loaded(held.model, tokenizer, copy.deepcopy(held.config), directory)
        _base = held
        return loaded
    del held
    loaded = load_model(directory)
    if job.serving and not _is_full(job):
        _base = _Base(loaded, listing)
    return loaded


def _listing(directory: Path) -> dict[str, Any]:
    """What tells one folder from another at a look; the worker has compared their hashes."""
    found: dict[str, Any] = {p.name: p.stat().st_size for p in directory.iterdir()}
    for path in directory.glob("*.json"):
        found[path.name] = path.read_bytes()
    return found


def _is_full(job: Job) -> bool:
    """Whether an adapter replaces the base's own weights: both would have to be held."""
    for role, directory in job.task.inputs.items():
        if role.split("_")[0] == "adapter":
            with suppress(OSError, ValueError, AttributeError):
                text = (Path(directory) / "adapter_config.json").read_text(encoding="utf-8")
                if json.loads(text).get("fine_tune_type") == "full":
                    return True
    return False


def _processes() -> int:
    return len(psutil.Process().children())


class Surroundings:
    """A process between two jobs: what belongs to the process, not to a base."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._directory = Path.cwd()
        self._threads = set(threading.enumerate())
        self._processes = _processes()
        self._generators = generators()

    def restore(self) -> bool:
        """Make the process ready for another eval on the same base; False: it is not to be used."""
        if _base is None or not _base.undo():
            return False
        left = {thread for thread in threading.enumerate() if thread.is_alive()} - self._threads
        if left or _processes() > self._processes:
            log.info("not kept: something of the job goes on")
            return False
        os.chdir(self._directory)
        os.environ.clear()
        os.environ.update(self._environment)
        self._generators()
        mx.clear_cache()
        mx.reset_peak_memory()
        return True


def generators() -> Callable[[], None]:
    """Return what sets every generator back to what it is now."""
    plain, numpy = random.getstate(), np.random.get_state()
    high, low = (int(word) for word in mx.random.state[0].tolist())

    def restore() -> None:
        random.setstate(plain)
        np.random.set_state(numpy)
        mx.random.seed((high << 32) | low)

    return restore
