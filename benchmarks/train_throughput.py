"""Training tokens/s through Espalier's engine over ``mlx_lm.lora``'s: paired runs, medians.

    python -m benchmarks.train_throughput [--pairs 5] [--iters 60] [--model DIR --data DIR]

Both run the same model, data, seed and flags, each in a process of its own, one after the other and
in alternating order. Tokens/s are what each reports itself, by the same clock. A run counts by its
fastest report but the first, which pays for compilation: other work on the machine can only slow a
report down. The pairs' ratios count by their median. Prints one JSON document and writes it to
``benchmarks/results/train_throughput.json``.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks import engines
from benchmarks.common import keep, median, ratios
from espalier.messages import MetricsEvent
from espalier.states import Kind
from espalier.textsql import write_dataset

#: mlx-lm prints tokens/s rounded to whole numbers; its callback does not round.
_MLX_LM = """
import sys, mlx_lm.lora as lora
from mlx_lm.tuner.callbacks import TrainingCallback

class Keep(TrainingCallback):
    def on_train_loss_report(self, info):
        print("RATE", info["iteration"], info["tokens_per_second"], flush=True)

lora.get_reporting_callbacks = lambda *a, **k: Keep()
sys.argv = ["mlx_lm.lora", "--config", sys.argv[1]]
lora.main()
"""


def make_spec(iters: int) -> dict[str, Any]:
    return {
        "iters": iters,
        "batch_size": 4,
        "num_layers": -1,
        "learning_rate": 1e-4,
        "steps_per_report": 10,
        "steps_per_eval": iters,
        "val_batches": 1,
        "save_every": max(iters // 2, 1),
        "seed": 1,
    }


def run_mlx_lm(directory: Path, model: Path, data: Path, spec: dict[str, Any]) -> list[float]:
    """Return ``mlx_lm.lora``'s tokens/s, one value a report."""
    config = spec | {"train": True, "model": str(model), "data": str(data)}
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(config | {"adapter_path": str(directory / "adapters")}))
    done = subprocess.run(
        [sys.executable, "-c", _MLX_LM, str(path)], capture_output=True, text=True, check=True
    )
    return [float(rate) for rate in re.findall(r"^RATE \d+ (\S+)$", done.stdout, re.M)]


def run_espalier(directory: Path, model: Path, data: Path, spec: dict[str, Any]) -> list[float]:
    """Return the engine's tokens/s, one value a report; it runs as a worker's child does."""
    spec = {**spec, "order": "mlx-lm"}
    events = engines.run(directory, Kind.TRAIN, spec, {"model": model, "data": data})
    metrics = [event.values for event in events if isinstance(event, MetricsEvent)]
    return [values["tokens_per_second"] for values in metrics if "tokens_per_second" in values]


def measure(pairs: int, iters: int, model: Path, data: Path) -> dict[str, Any]:
    """Run ``pairs`` pairs; return both medians a pair, and the median of their ratios."""
    spec = make_spec(iters)
    runners = {"mlx_lm": run_mlx_lm, "espalier": run_espalier}
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for pair in range(pairs + 1):
        for name in list(runners)[:: 1 if pair % 2 else -1]:
            with tempfile.TemporaryDirectory() as directory:
                reports = runners[name](Path(directory), model, data, spec)
            # The first pair compiles MLX's kernels for both and is not counted.
            if pair:
                rates[name].append(round(max(reports[1:]), 1))
    found = ratios(rates["espalier"], rates["mlx_lm"])
    return {
        "iters": iters,
        "tokens_per_second": rates,
        "ratios": [round(ratio, 4) for ratio in found],
        "ratio": round(median(found), 4),
        "limit": 0.99,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--iters", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="one pair")
    parser.add_argument("--model", type=Path, help="default: a tiny one, made here")
    parser.add_argument("--data", type=Path, help="default: a text-to-SQL set, made here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        model, data = args.model, args.data
        if model is None:
            model = Path(made) / "model"
            tiny = [sys.executable, "-m", "worker.engine.tiny", str(model), "--pretrain", "0"]
            subprocess.run(tiny, check=True, stdout=subprocess.DEVNULL)
        if data is None:
            data = Path(made) / "data"
            write_dataset(data, rows=400)
        result = measure(1 if args.quick else args.pairs, args.iters, model, data)
    keep("train_throughput_quick" if args.quick else "train_throughput", result)
    return 0 if result["ratio"] >= result["limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
