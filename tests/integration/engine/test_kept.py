"""Nothing of one job is in another's result: an eval on a kept base, and a run in a warm child."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from espalier.messages import Event, MetricsEvent, ProofEvent, TableEvent
from tests.integration.engine.child import Child as Ended
from tests.integration.engine.child import make_task, run_inside
from tests.integration.engine.conftest import SHORT
from worker.child import Child, Listeners
from worker.engine.kept import _Base
from worker.engine.models import load_model
from worker.serving import SERVE, WARM

EVAL = {"batch_size": 2, "test_batches": 5, "seed": 11, "compare_base": True}


@dataclass
class Told:
    """What one job said."""

    events: list[Event] = field(default_factory=list)
    log: bytes = b""
    rests: bool = False

    @property
    def results(self) -> list[tuple[Any, ...]]:
        """All numbers, as they were written; times of day and speeds are no results."""
        found: list[tuple[Any, ...]] = []
        for event in self.events:
            match event:
                case MetricsEvent():
                    found.append((event.step, *sorted(event.values.items())))
                case ProofEvent():
                    found.append((event.name, event.value, event.limit))
                case TableEvent():
                    found.append((event.name, event.rows))
        return found

    @property
    def generators(self) -> str:
        found = re.search(rb"^generators (\S+)", self.log, re.MULTILINE)
        assert found, self.log.decode()
        return found[1].decode()


class Process:
    """A child as a worker drives it, of the telling engine."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        directory.mkdir(parents=True)
        module = "tests.integration.engine.telling_engine"
        self.directory, self.count = directory, 0
        self.child = Child(directory, directory / "idle.json", module, *arguments)

    def run(self, kind: str, spec: dict[str, Any], inputs: dict[str, Path]) -> Told:
        self.count += 1
        told, changed = Told(), threading.Event()

        def log(chunk: bytes) -> None:
            told.log += chunk

        directory = self.directory / str(self.count)
        task = make_task(directory, kind, spec, inputs)
        listeners = Listeners(told.events.append, log, lambda usage, wait: wait, changed.set)
        self.child.begin(task, listeners, directory / "group.json")
        while not (self.child.ended or self.child.resting):
            assert changed.wait(120), told.log.decode()
            changed.clear()
        told.rests = self.child.resting
        if told.rests:
            self.child.rest(self.directory / "idle.json")
        assert told.events[-1].type == "done", told.log.decode()
        return told


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    made: list[Process] = []

    def start(*arguments: str) -> Process:
        made.append(Process(tmp_path / f"process{len(made)}", *arguments))
        return made[-1]

    yield start
    for one in made:
        if not one.child.ended:
            one.child.kill()


@pytest.fixture(scope="module")
def dora(model: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of another type on another number of layers."""
    spec = SHORT | {"fine_tune_type": "dora", "num_layers": 1, "iters": 4, "learning_rate": 1e-3}
    made = run_inside(
        tmp_path_factory.mktemp("dora"), "train", spec, {"model": model, "data": dataset}
    )
    return made.output("adapter")


def test_an_eval_on_a_kept_base_is_that_of_a_clean_process_bit_for_bit(
    start: Any, inputs: dict[str, Path], trained: Ended, dora: Path
) -> None:
    lora = inputs | {"adapter": trained.output("adapter")}
    reused, clean = start(SERVE), start()
    before = [
        reused.run("eval", EVAL | {"seed": 5}, inputs | {"adapter": dora}),
        reused.run("eval", EVAL | {"seed": 6, "sweep": True}, lora),
    ]
    again, once = reused.run("eval", EVAL, lora), clean.run("eval", EVAL, lora)
    assert all(told.rests for told in before)
    assert b"in memory already" in again.log
    assert b"in memory already" not in once.log
    assert again.results == once.results
    assert again.results
    assert again.generators == once.generators
    assert again.generators not in [told.generators for told in before]
    assert not once.rests


def test_a_run_in_a_warm_child_makes_what_one_in_a_cold_child_makes(
    start: Any, inputs: dict[str, Path], trained: Ended
) -> None:
    warm = start(SERVE, WARM)
    assert warm.child.ready.wait(240)
    told = warm.run("train", SHORT, inputs)
    made = warm.directory / "1/output/adapter/adapters.safetensors"
    assert made.read_bytes() == (trained.output("adapter") / made.name).read_bytes()
    assert not told.rests, "a process trains once"
    assert b"generators" in told.log


def test_another_kind_of_adapter_leaves_nothing_to_keep(
    start: Any, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """A full fine-tune writes over the base: its process is not used again."""
    spec = SHORT | {"fine_tune_type": "full", "iters": 2}
    full = run_inside(tmp_path / "full", "train", spec, inputs).output("adapter")
    told = start(SERVE).run("eval", EVAL, inputs | {"adapter": full})
    assert not told.rests


def test_what_was_done_to_a_base_is_undone_or_found(model: Path) -> None:
    loaded = load_model(model)
    before = {name: id(value) for name, value in tree_flatten(loaded.model.parameters())}
    base = _Base(loaded, {})
    loaded.model.freeze()
    loaded.model.train()
    linear_to_lora_layers(loaded.model, 2, {"rank": 4, "dropout": 0.1, "scale": 10.0})
    loaded.model.layers[0].mlp.extra = [1, 2]
    assert base.undo()
    assert {name: id(value) for name, value in tree_flatten(loaded.model.parameters())} == before
    assert not loaded.model.layers[0].training
    assert loaded.model.trainable_parameters() != {}
    weight = loaded.model.layers[0].mlp.up_proj.weight
    weight[0, 0] += 1.0
    assert not base.undo(), "an array was written to where it is"
