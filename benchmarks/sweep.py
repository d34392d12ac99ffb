"""A sweep over ten checkpoints over ten runs of ``mlx_lm.lora --test``: paired, wall time, medians.

    python -m benchmarks.sweep [--pairs 3] [--checkpoints 10] [--rows 1000] [--hidden 64] [--quick]
    python -m benchmarks.sweep --model DIR --data DIR

Both measure the same checkpoints of one run on the same rows of the test split: Espalier in one
child process, as its worker starts it, with intervals; mlx-lm as a person does, a process a
checkpoint, each with the folder that it wants made before the clock starts. In alternating order.
What a sweep saves is nine starts (imports, loading, tokenizing) and the padding that sorted rows
spare; the measuring itself is paid by both, so the ratio grows with the model and the rows. The
losses of both are compared to the digits that mlx-lm prints. Prints one JSON document and
writes it to ``benchmarks/results/sweep.json``.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import engines
from benchmarks.common import keep, median, ratios
from espalier.messages import MetricsEvent
from espalier.states import Kind
from espalier.textsql import write_dataset

LIMIT = 0.35
#: mlx-lm prints losses with three digits.
DIGITS = 6e-4

_LORA = [sys.executable, "-m", "mlx_lm", "lora"]


def train(folder: Path, model: Path, data: Path, checkpoints: int) -> Path:
    """Train an adapter with a checkpoint at every step; return its folder."""
    adapter = folder / "adapter"
    flags = ["--iters", str(checkpoints), "--save-every", "1", "--num-layers", "-1"]
    flags += ["--val-batches", "0", "--learning-rate", "1e-3", "--batch-size", "4"]
    where = ["--model", str(model), "--data", str(data), "--adapter-path", str(adapter)]
    subprocess.run([*_LORA, "--train", *flags, *where], check=True, stdout=subprocess.DEVNULL)
    return adapter


def folders(folder: Path, adapter: Path) -> dict[int, Path]:
    """Return a folder for each checkpoint, as ``mlx_lm.lora --adapter-path`` wants it."""
    made = {}
    for path in sorted(adapter.glob("*_adapters.safetensors")):
        step = int(path.name.split("_")[0])
        made[step] = folder / f"checkpoint-{step}"
        made[step].mkdir()
        shutil.copyfile(adapter / "adapter_config.json", made[step] / "adapter_config.json")
        shutil.copyfile(path, made[step] / "adapters.safetensors")
    return made


def run_mlx_lm(model: Path, data: Path, checkpoints: dict[int, Path]) -> dict[int, float]:
    """Test one checkpoint after another; return loss by step."""
    losses = {}
    for step, adapter in checkpoints.items():
        where = ["--model", str(model), "--data", str(data), "--adapter-path", str(adapter)]
        done = subprocess.run(
            [*_LORA, "--test", "--test-batches", "-1", "--batch-size", "4", *where],
            capture_output=True,
            text=True,
            check=True,
        )
        found = re.search(r"Test loss ([\d.]+)", done.stdout)
        assert found, done.stdout
        losses[step] = float(found[1])
    return losses


def run_espalier(folder: Path, model: Path, data: Path, adapter: Path) -> dict[int, float]:
    """Sweep in one child, as a worker does; return loss by step."""
    spec = {"sweep": True, "compare_base": False, "test_batches": -1, "batch_size": 4}
    inputs = {"model": model, "data": data, "adapter": adapter}
    events = engines.run(folder, Kind.EVAL, spec, inputs)
    metrics = [event for event in events if isinstance(event, MetricsEvent)]
    return {event.step: event.values["test_loss"] for event in metrics}


def measure(folder: Path, model: Path, data: Path, pairs: int, checkpoints: int) -> dict[str, Any]:
    """Run ``pairs`` pairs; return both times of each, and the median of their ratios."""
    adapter = train(folder, model, data, checkpoints)
    by_step = folders(folder, adapter)
    seconds: dict[str, list[float]] = {"mlx_lm": [], "espalier": []}
    apart = 0.0
    for pair in range(pairs):
        losses = {}
        for name in list(seconds)[:: 1 if pair % 2 else -1]:
            with tempfile.TemporaryDirectory() as scratch:
                began = time.perf_counter()
                losses[name] = (
                    run_mlx_lm(model, data, by_step)
                    if name == "mlx_lm"
                    else run_espalier(Path(scratch), model, data, adapter)
                )
                seconds[name].append(round(time.perf_counter() - began, 2))
        ours, theirs = losses["espalier"], losses["mlx_lm"]
        apart = max([apart, *(abs(ours[step] - loss) for step, loss in theirs.items())])
    found = ratios(seconds["espalier"], seconds["mlx_lm"])
    return {
        "checkpoints": checkpoints,
        "seconds": seconds,
        "losses_apart": round(apart, 6),
        "ratios": [round(ratio, 4) for ratio in found],
        "ratio": round(median(found), 4),
        "limit": LIMIT,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--rows", type=int, default=1000, help="a tenth of them is tested")
    parser.add_argument("--hidden", type=int, default=64, help="of the tiny model")
    parser.add_argument("--model", type=Path, help="default: a tiny one, made here")
    parser.add_argument("--data", type=Path, help="default: a text-to-SQL set, made here")
    parser.add_argument("--quick", action="store_true", help="one pair, kept nowhere")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model, data = args.model or folder / "model", args.data or folder / "data"
        if args.model is None:
            tiny = [sys.executable, "-m", "worker.engine.tiny", str(model), "--pretrain", "0"]
            tiny += ["--hidden", str(args.hidden)]
            subprocess.run(tiny, check=True, stdout=subprocess.DEVNULL)
        if args.data is None:
            write_dataset(data, rows=args.rows)
        pairs = 1 if args.quick else args.pairs
        result = measure(folder, model, data, pairs, args.checkpoints)
        result |= {"rows": args.rows, "hidden": args.hidden}
    if args.quick:
        print(result)
    else:
        keep("sweep", result)
    return 0 if result["ratio"] <= LIMIT and result["losses_apart"] <= DIGITS else 1


if __name__ == "__main__":
    sys.exit(main())
