"""The work of a night: pipelines with seeds of their own, and what each must have become."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from scheduler.db import Database
from scheduler.store.base import Driver
from tests.acceptance.stacks import Up, up
from tests.faults import evidence
from tests.faults.storm import progress

#: Reached only when something is stuck.
PATIENCE = 3600.0
#: So that leases and tickets end within a storm, not after it.
SHORT = {
    "ESPALIER_LEASE_SECONDS": "8",
    "ESPALIER_REPORT_SECONDS": "1",
    "ESPALIER_CLAIM_TIMEOUT_SECONDS": "4",
}


@dataclass(frozen=True)
class Night:
    """``pipelines`` of a training of ``iters`` steps and all that comes after it."""

    pipelines: int
    iters: int
    workers: int
    model: Path
    data: Path

    def push(self, stack: Up) -> None:
        """Give a new stack what the jobs work on."""
        stack.run("model", "push", str(self.model), "team/tiny")
        stack.run("dataset", "push", str(self.data), "team/textsql")

    def submit(self, stack: Up, directory: Path, *, whole: bool = True, again: str = "") -> None:
        """Submit every pipeline, or its training alone; ``again`` makes other names of the same."""
        for seed in range(self.pipelines):
            steps = self._steps(seed, again)
            file = directory / f"{seed}.json"
            kept = steps if whole else steps[:1]
            file.write_text(json.dumps({"name": f"night-{seed}", "steps": kept}))
            stack.json("pipeline", str(file))

    def again(self, stack: Up, directory: Path) -> Callable[[], None]:
        """Return what submits every pipeline once more, each time under other names."""
        rounds = count(2)
        return lambda: self.submit(stack, directory, again=f"-{next(rounds)}")

    def undisturbed(self, home: Path) -> dict[int, str]:
        """Run the trainings where nothing happens; return seed → sha256 of the adapter."""
        home.mkdir()
        began = time.monotonic()
        with up(home / "data", workers=self.workers) as stack:
            self.push(stack)
            self.submit(stack, home, whole=False)
            database = Database(f"sqlite:///{stack.data_dir / 'espalier.db'}")
            all_ended(database)
            assert evidence.unfinished(database) == []
            found = evidence.adapters(database)
            database.close()
        assert len(set(found.values())) == self.pipelines, "each seed makes its own adapter"
        print(f"\n{self.pipelines} trainings undisturbed: {time.monotonic() - began:.0f} s")
        return found

    def judge(self, database: Database, store: Driver, undisturbed: dict[int, str]) -> None:
        """Nothing was lost, nothing was done twice."""
        assert evidence.unfinished(database) == []
        assert evidence.published_twice(database) == []
        assert evidence.damaged(database, store) == []
        assert evidence.holes(database, self.iters) == []
        assert evidence.adapters(database) == undisturbed

    def _train(self, seed: int) -> dict[str, Any]:
        return {
            "kind": "train",
            "model": "team/tiny",
            "data": "team/textsql",
            "seed": seed,
            "iters": self.iters,
            "num_layers": -1,
            "batch_size": 2,
            "learning_rate": 1e-4,
            "steps_per_report": 1,
            "steps_per_eval": 50,
            "save_every": max(self.iters // 15, 5),
            "val_batches": 2,
            "max_seq_length": 128,
            "lora_parameters": {"rank": 8, "dropout": 0.05, "scale": 10.0},
        }

    def _steps(self, seed: int, again: str) -> list[dict[str, Any]]:
        """train → eval → fuse → quantize, and every third one exports too."""
        data = {"data": "team/textsql", "max_seq_length": 128}
        adapter = {"model": "team/tiny", "adapter": "step:train"}
        name = f"team/night-{seed}{again}"
        steps = [
            {"step": "train", "spec": self._train(seed), "name": name},
            {"step": "eval", "spec": {"kind": "eval", "test_batches": 10, **adapter, **data}},
            {"step": "fuse", "spec": {"kind": "fuse", **adapter, **data}, "name": f"{name}-fused"},
            {
                "step": "quantize",
                "spec": {"kind": "quantize", "model": "step:fuse", "q_bits": 4, **data},
                "name": f"{name}-q4",
            },
        ]
        if seed % 3 == 0:
            spec = {"kind": "export", "model": "step:fuse", "type": "q8_0", "data": "team/textsql"}
            steps.append({"step": "export", "spec": spec, "name": f"{name}-gguf"})
        return steps


def all_ended(database: Database) -> None:
    """Wait until no job is left, whatever became of it."""
    deadline = time.monotonic() + PATIENCE
    while (found := progress(database)) is None or found[0] < found[1]:
        assert time.monotonic() < deadline, evidence.unfinished(database)
        time.sleep(0.5)  # between looks
