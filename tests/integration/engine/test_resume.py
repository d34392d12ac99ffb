"""A child killed -9 at random steps, again and again, on two workers: to the bit the same adapter.

All that a worker's disk holds is lost with each kill. What is left is what had been published: the
last checkpoint that was announced, copied at that moment as the publisher does.
"""

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from espalier.messages import CheckpointEvent, Event, MetricsEvent, OutputEvent
from tests.integration.engine.child import Child, Run, run_child
from tests.integration.engine.conftest import SHORT

ChildRunner = Callable[..., Child]

#: Saved between two updates of an accumulation, too; dropout, schedule and warm-up are SHORT's.
BASE: dict[str, Any] = SHORT | {
    "iters": 60,
    "steps_per_report": 1,
    "steps_per_eval": 5,
    "save_every": 4,
    "grad_accumulation_steps": 3,
}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "packed, stopped early": (
        {
            "packing": True,
            "max_seq_length": 64,
            "batch_size": 2,
            "early_stopping_patience": 3,
            "early_stopping_min_delta": 0.04,
        },
        4,
    ),
    "bucketed, full, in parts": (
        {"order": "bucketed", "fine_tune_type": "full", "micro_batch_size": 3, "iters": 18},
        1,
    ),
    "mlx-lm": ({"order": "mlx-lm", "optimizer": "adam", "iters": 18}, 1),
}


@dataclass
class Store:
    """What has been published of a run: its checkpoints, and its losses by step."""

    directory: Path
    latest: Path | None = None
    losses: dict[tuple[str, int], float] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        if isinstance(event, CheckpointEvent):
            self.latest = self.directory / f"{event.step}"
            shutil.rmtree(self.latest, ignore_errors=True)
            shutil.copytree(event.directory, self.latest)
        elif isinstance(event, MetricsEvent):
            for name in {"train_loss", "val_loss", "best_val_loss"} & event.values.keys():
                self.losses[name, event.step] = event.values[name]


def kill_at(step: int | None, store: Store) -> Callable[[Run, Event], None]:
    def react(run: Run, event: Event) -> None:
        store.take(event)
        if step is not None and isinstance(event, MetricsEvent) and event.step >= step:
            run.process.kill()

    return react


def files(run: Child) -> dict[str, str]:
    adapter = run.output("adapter")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(adapter.iterdir())}


def meta(run: Child) -> dict[str, Any]:
    (output,) = run.all(OutputEvent)
    return output.meta


def losses(run: Child) -> dict[tuple[str, int], float]:
    names = ("train_loss", "val_loss", "best_val_loss")
    return {(name, step): loss for name in names for step, loss in run.series(name).items()}


@pytest.mark.parametrize("case", CASES)
def test_kills_at_random_steps_on_two_workers_change_no_bit(
    case: str, inputs: dict[str, Path], inside: ChildRunner, tmp_path: Path
) -> None:
    changes, kills = CASES[case]
    whole = inside("train", BASE | changes, inputs)
    last = meta(whole)["last_step"]
    assert meta(whole)["stopped_early"] == ("stopped" in case)

    seed = random.SystemRandom().randrange(10**6)
    steps = sorted(random.Random(seed).sample(range(1, last - 2), kills))
    told = f"{last} steps, killed at {steps} (seed {seed})"
    workers = []
    for number in range(2):
        cache = tmp_path / f"worker{number}"
        workers.append({role: shutil.copytree(p, cache / role) for role, p in inputs.items()})
    store, killed = Store(tmp_path / "store"), 0
    for attempt, step in enumerate([*steps, None]):
        ended = run_child(
            tmp_path / f"attempt{attempt}",
            "train",
            BASE | changes,
            workers[attempt % 2],
            resume=store.latest,
            on_event=kill_at(step, store),
        )
        killed += ended.status == -9
        if ended.status == 0:
            break
        shutil.rmtree(tmp_path / f"attempt{attempt}")  # the machine and its disk are gone
    assert killed, told
    assert files(ended) == files(whole), told
    assert meta(ended) == meta(whole), told
    assert store.losses == losses(whole), told
