"""A night of faults: everything is killed at random, and nothing is lost or done twice.

STORM_KILLS (50), STORM_PIPELINES (12), STORM_ITERS and STORM_SEED make another night of it.
ESPALIER_FAULTS_REPORT names a directory for the table.
"""

import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scheduler.db import Database
from scheduler.store import open_driver
from tests.acceptance.stacks import Up, up
from tests.faults import evidence, stacks
from tests.faults.storm import Storm, progress

KILLS = int(os.environ.get("STORM_KILLS", "50"))
PIPELINES = int(os.environ.get("STORM_PIPELINES", "12"))
ITERS = int(os.environ.get("STORM_ITERS", "300"))
WORKERS = 3
#: A quiet second of one worker is some of a storm's; reached only when something is stuck.
PATIENCE = 3600.0
#: So that leases and tickets end within a storm, not after it.
SHORT = {
    "ESPALIER_LEASE_SECONDS": "8",
    "ESPALIER_REPORT_SECONDS": "1",
    "ESPALIER_CLAIM_TIMEOUT_SECONDS": "4",
}


def _train(seed: int) -> dict[str, Any]:
    return {
        "kind": "train",
        "model": "team/tiny",
        "data": "team/textsql",
        "seed": seed,
        "iters": ITERS,
        "num_layers": -1,
        "batch_size": 2,
        "learning_rate": 1e-4,
        "steps_per_report": 1,
        "steps_per_eval": 50,
        "save_every": max(ITERS // 15, 5),
        "val_batches": 2,
        "max_seq_length": 128,
        "lora_parameters": {"rank": 8, "dropout": 0.05, "scale": 10.0},
    }


def _pipeline(seed: int) -> dict[str, Any]:
    """train → eval → fuse → quantize, and every third one exports too."""
    data = {"data": "team/textsql", "max_seq_length": 128}
    adapter = {"model": "team/tiny", "adapter": "step:train"}
    name = f"team/night-{seed}"
    steps = [
        {"step": "train", "spec": _train(seed), "name": name},
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
    return {"name": f"night-{seed}", "steps": steps}


def _submit(stack: Up, directory: Path, pipelines: Sequence[dict[str, Any]]) -> None:
    for number, pipeline in enumerate(pipelines):
        file = directory / f"{number}.json"
        file.write_text(json.dumps(pipeline))
        stack.json("pipeline", str(file))


def _push(stack: Up, tiny_model: Path, dataset: Path) -> None:
    stack.run("model", "push", str(tiny_model), "team/tiny")
    stack.run("dataset", "push", str(dataset), "team/textsql")


def _all_ended(database: Database) -> None:
    deadline = time.monotonic() + PATIENCE
    while (found := progress(database)) is None or found[0] < found[1]:
        assert time.monotonic() < deadline, evidence.unfinished(database)
        time.sleep(0.5)  # between looks


def _quietly(home: Path, tiny_model: Path, dataset: Path) -> dict[int, str]:
    """Run the trainings where nothing happens; return seed → sha256 of the adapter."""
    home.mkdir()
    began = time.monotonic()
    with up(home / "data", workers=WORKERS) as stack:
        _push(stack, tiny_model, dataset)
        trains = [_pipeline(seed)["steps"][:1] for seed in range(PIPELINES)]
        _submit(stack, home, [{"name": "quiet", "steps": steps} for steps in trains])
        database = Database(f"sqlite:///{stack.data_dir / 'espalier.db'}")
        _all_ended(database)
        assert evidence.unfinished(database) == []
        found = evidence.adapters(database)
        database.close()
    print(f"\n{PIPELINES} trainings undisturbed: {time.monotonic() - began:.0f} s")
    return found


def test_a_night_of_kills(tmp_path: Path, tiny_model: Path, dataset: Path) -> None:
    undisturbed = _quietly(tmp_path / "quiet", tiny_model, dataset)
    assert len(set(undisturbed.values())) == PIPELINES, "each seed makes its own adapter"
    seed = int(os.environ.get("STORM_SEED", random.randrange(1_000_000)))
    print(f"{KILLS} kills over {PIPELINES} pipelines on {WORKERS} workers, STORM_SEED={seed}")
    with stacks.team(tmp_path / "team") as team:
        settings = team.config()
        with up(tmp_path / "data", workers=WORKERS, settings=SHORT | team.settings) as stack:
            _push(stack, tiny_model, dataset)
            _submit(stack, tmp_path, [_pipeline(seed) for seed in range(PIPELINES)])
            database = Database(settings.sql_url)
            storm = Storm(stack, team, database, seed)
            began = time.monotonic()
            storm.rage(KILLS)
            _all_ended(database)
            night = time.monotonic() - began
            assert stack.stop() == 0
        assert evidence.left_behind(tmp_path / "data") == []
        assert not stacks.is_open(int(stack.url.rpartition(":")[2]))
        _tell(database, storm, night)
        assert len(storm.kills) == KILLS
        assert evidence.unfinished(database) == []
        assert evidence.published_twice(database) == []
        assert evidence.damaged(database, open_driver(settings)) == []
        assert evidence.adapters(database) == undisturbed
        database.close()
    assert evidence.left_behind(tmp_path) == []


def _tell(database: Database, storm: Storm, seconds: float) -> None:
    rows = evidence.table(database, storm.kills)
    made = evidence.totals(database)
    counts = ", ".join(f"{n} {what}" for what, n in made.items())
    lines = [
        f"{len(storm.kills)} kills (seed {storm.seed}) in {seconds:.0f} s on {WORKERS} workers:"
        f" {counts}.",
        "",
        evidence.markdown(evidence.HEAD, [row.cells() for row in rows]),
    ]
    print("\n" + "\n".join(lines))
    figures: dict[str, Any] = {
        "seed": storm.seed,
        "seconds": round(seconds, 1),
        "workers": WORKERS,
        **made,
    }
    figures["rows"] = [vars(row) for row in rows]
    figures["kills"] = list(evidence.story(storm.kills))
    evidence.save("storm", figures, "\n".join(lines))
