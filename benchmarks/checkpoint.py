"""The share of a run that its checkpoints hold up, at ``save_every 100``.

    python -m benchmarks.checkpoint [--runs 5] [--steps 400] [--quick]

A checkpoint is written by the training process between two steps: what it holds up is the time in
the functions that look at the weights and write them, optimizer and state, flushed to the disk.
They are timed in the engine itself, over the time from the first step to the last; publishing is
the worker's, and goes on beside the steps. The steps of a tiny model are short, so the share is
larger than a real one's. Prints the median and the worst share of the runs. Goal: ≤ 2 %.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import keep, median
from benchmarks.engines import text_to_sql, tiny_model

LIMIT = 0.02
SAVE_EVERY = 100


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return ``function``, which then appends the seconds of each call to ``spent``."""

    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - began)

    return measured


def inside(root: Path, steps: int) -> dict[str, Any]:
    """Train in this process; return the seconds of the run and those of each checkpoint."""
    from tests.integration.engine.child import run_inside
    from worker.engine.train import checkpoints, loop

    spent: list[float] = []
    whole: list[float] = []
    for place, name, seconds in (
        (loop.Loop, "_check_weights", spent),
        (loop, "write_weights", spent),
        (checkpoints, "save", spent),
        (loop.Loop, "run", whole),
    ):
        setattr(place, name, timed(getattr(place, name), seconds))
    spec = {
        "iters": steps,
        "batch_size": 4,
        "num_layers": -1,
        "learning_rate": 1e-4,
        "steps_per_eval": steps,
        "val_batches": 1,
        "save_every": SAVE_EVERY,
        "optimizer": "adamw",
    }
    with tempfile.TemporaryDirectory() as directory:
        inputs = {"model": root / "model", "data": root / "data"}
        ended = run_inside(Path(directory), "train", spec, inputs)
        assert ended.status == 0, ended.log
    return {"run": sum(whole), "checkpoints": spent}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="one run of 200 steps")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    runs, steps = (1, 200) if args.quick else (args.runs, args.steps)
    if args.child:
        sys.stdout.write("\n" + json.dumps(inside(args.child, steps)) + "\n")
        return 0
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        tiny_model(root / "model", pretrain=0, hidden=128)
        text_to_sql(root / "data", 1000)
        command = [sys.executable, "-m", "benchmarks.checkpoint", "--child", made]
        command += ["--steps", str(steps), *(["--quick"] if args.quick else [])]
        found = []
        for _ in range(runs + 1):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    shares = [sum(one["checkpoints"]) / one["run"] for one in found[1:]]  # the first compiles
    result = {
        "steps": steps,
        "save_every": SAVE_EVERY,
        "run_s": [round(one["run"], 3) for one in found[1:]],
        "stalled_s": [round(sum(one["checkpoints"]), 4) for one in found[1:]],
        "share": round(median(shares), 5),
        "worst_share": round(max(shares), 5),
        "limit": LIMIT,
    }
    keep("checkpoint_quick" if args.quick else "checkpoint", result)
    return 0 if result["share"] <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
