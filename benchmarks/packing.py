"""Wall time to the same validation loss, packed or bucketed, over one padded batch after another.

    python -m benchmarks.packing [--data DIR] [--pairs 3] [--steps 400] [--quick]

``--data`` is a folder with WikiSQL's train.jsonl and valid.jsonl (without: text-to-SQL rows in
that format, made here). Padded: ``mlx_lm.lora``'s way, rows shuffled, batch 4. Bucketed: batch 4
of rows of like length. Packed: sequences as long as four average rows, batch 1, so that a step
sees as many tokens and there are as many of them. Each way starts from the same weights, sees the
same number of target tokens and is validated as often, on the same rows. The loss to be reached
is the highest of the three lowest: all reach it. The time is that to the first validation at or
below it, validations left out. Goal: the better of the two ways ÷ padded ≤ 0.67.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.common import keep, median, ratios
from benchmarks.engines import run, text_to_sql, tiny_model
from espalier.messages import Event, MetricsEvent, PhaseEvent
from espalier.states import Kind

LIMIT = 0.67
BATCH = 4


@dataclass(frozen=True, slots=True)
class Course:
    """A run: validation loss and seconds of training at each validation, and tokens in all."""

    points: tuple[tuple[float, float], ...]
    tokens: float

    @property
    def lowest(self) -> float:
        return min(loss for loss, _ in self.points)

    def reaches(self, target: float) -> float:
        return next(seconds for loss, seconds in self.points if loss <= target)


def course(events: list[Event]) -> Course:
    """Return a run's course; the clock stands while it validates, loads and saves."""
    clock, since, tokens = 0.0, None, 0.0
    points = []
    for event in events:
        if isinstance(event, PhaseEvent):
            clock += event.time - since if since is not None else 0.0
            since = event.time if event.name == "training" else None
        elif isinstance(event, MetricsEvent):
            tokens = event.values.get("trained_tokens", tokens)
            if "val_loss" in event.values and clock:
                points.append((event.values["val_loss"], clock))
    return Course(tuple(points), tokens)


def lengths(model: Path, data: Path, most: int = 400) -> list[int]:
    """Tokens of the first training rows."""
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(model)
    with (data / "train.jsonl").open(encoding="utf-8") as lines:
        return [len(tokenizer.encode(json.loads(line)["text"])) for line in islice(lines, most)]


def ways(rows: list[int], steps: int) -> dict[str, dict[str, Any]]:
    """Return the three specs; a packed sequence holds as many tokens as a padded batch's rows."""
    sequence = max(BATCH * sum(rows) // len(rows), max(rows))
    common = {
        "iters": steps,
        "num_layers": -1,
        "learning_rate": 1e-3,
        "steps_per_report": max(steps // 10, 1),
        "steps_per_eval": max(steps // 10, 1),
        "val_batches": -1,
        "save_every": 10 * steps,
        "max_seq_length": sequence,
        "seed": 1,
    }
    return {
        "padded": {**common, "batch_size": BATCH},
        "bucketed": {**common, "batch_size": BATCH, "order": "bucketed"},
        "packed": {**common, "batch_size": 1, "packing": True},
    }


def measure(pairs: int, steps: int, model: Path, data: Path) -> dict[str, Any]:
    rows = lengths(model, data)
    specs = ways(rows, steps)
    inputs = {"model": model, "data": data}
    seconds: dict[str, list[float]] = {name: [] for name in specs}
    targets, tokens = [], {}
    for pair in range(pairs + 1):
        found: dict[str, Course] = {}
        for name in list(specs)[:: 1 if pair % 2 else -1]:
            with tempfile.TemporaryDirectory() as directory:
                found[name] = course(run(Path(directory), Kind.TRAIN, specs[name], inputs))
        if not pair:
            continue  # compiles MLX's kernels for all
        target = max(one.lowest for one in found.values())
        targets.append(target)
        for name, one in found.items():
            seconds[name].append(one.reaches(target))
            tokens[name] = one.tokens
    packed = median(ratios(seconds["packed"], seconds["padded"]))
    bucketed = median(ratios(seconds["bucketed"], seconds["padded"]))
    return {
        "row_tokens": {"median": median(rows), "longest": max(rows)},
        "steps": steps,
        "tokens": tokens,
        "target_loss": targets,
        "seconds": seconds,
        "packed_over_padded": round(packed, 4),
        "bucketed_over_padded": round(bucketed, 4),
        "ratio": round(min(packed, bucketed), 4),
        "limit": LIMIT,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="one pair of 30 steps")
    args = parser.parse_args()
    pairs, steps = (1, 30) if args.quick else (args.pairs, args.steps)
    with tempfile.TemporaryDirectory() as made:
        model = tiny_model(Path(made) / "model", pretrain=0, hidden=128)
        data = args.data or text_to_sql(Path(made) / "data", 300 if args.quick else 1000)
        result = measure(pairs, steps, model, data)
    keep("packing_quick" if args.quick else "packing", result)
    return 0 if result["ratio"] <= result["limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
