"""Predicted memory against ``mx.get_peak_memory``, over configurations the fit has never seen.

    python -m benchmarks.memory [--cases 36]     measure held-out configurations
    python -m benchmarks.memory --fit            measure others, fit the coefficients, print them

Each configuration is a job of the real engine on a model made for it, in a process of its own.
``--fit`` measures other shapes, lengths and draws than those reported here, and keeps their peaks
in ``results/memory_fitted.json``; one that cannot run here (Mixtral in bfloat16) is left out.
Models are small, because peaks are proportional: no term is a constant. Prints the median and the
worst relative error and writes ``results/memory.json``; ends with 1 above the limits.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, keep, median
from benchmarks.memory_cases import Case, Shape, fitted, held_out
from benchmarks.memory_fit import fit
from espalier.memory import Estimate, estimate
from espalier.specs import SPECS, parse
from espalier.states import Kind
from espalier.textsql import texts

#: The limits of the predictor's relative error.
MEDIAN, WORST = 0.08, 0.20


def make_model(root: Path, shape: Shape) -> Path:
    """Write the model, with random weights and a small tokenizer, unless it is there."""
    import mlx.core as mx
    from mlx_lm.utils import _get_classes, quantize_model, save_model

    from worker.engine.tiny import make_tokenizer

    directory, tokenizer = root / shape.name, root / "tokenizer"
    if not tokenizer.exists():
        tokenizer.mkdir(parents=True)
        make_tokenizer(tokenizer, 512, 0)
    shutil.copytree(tokenizer, directory, dirs_exist_ok=True)
    config = shape.config()
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.set_dtype(getattr(mx, shape.dtype))
    if shape.bits:
        model, config = quantize_model(model, config, 32, shape.bits)
    save_model(directory, model)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def make_data(root: Path) -> Path:
    """Write rows longer than any max_seq_length here: a row has exactly that many tokens."""
    directory, source = root / "data", texts(5)
    directory.mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        rows = [json.dumps({"text": " ".join(islice(source, 14))}) for _ in range(8)]
        (directory / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return directory


def peak(case: Case, root: Path) -> dict[str, Any]:
    """Run the case in this process; return its peak, the weights' bytes and the config."""
    import gc

    import mlx.core as mx

    from tests.integration.engine.child import run_inside

    model, data = make_model(root, case.shape), make_data(root)
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    run = run_inside(root / "job", case.kind, case.spec, {"model": model, "data": data})
    if run.status:
        raise RuntimeError(f"{case} failed: {run.error.message}")
    return {
        "peak": mx.get_peak_memory() - before,
        "weights": sum(file.stat().st_size for file in model.glob("*.safetensors")),
        "config": json.loads((model / "config.json").read_text()),
    }


def measure(case: Case) -> dict[str, Any]:
    """Return what ``peak`` finds in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        question = json.dumps(asdict(case))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", "--child", question, directory],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def predict(case: Case, found: dict[str, Any]) -> Estimate:
    """Return the estimate of a measured case, from its config and weight files as a store knows."""
    spec = parse(SPECS[Kind(case.kind)], {"model": "a/b", "data": "a/c", **case.spec})
    return estimate(found["config"], spec, found["weights"])


def compare(cases: list[Case]) -> dict[str, Any]:
    """Measure each case and return the errors of its prediction, relative to the measured peak."""
    rows = []
    for number, case in enumerate(cases, 1):
        found = measure(case)
        predicted = predict(case, found).engine
        error = predicted / found["peak"] - 1
        rows.append(
            {
                "architecture": case.shape.arch,
                "method": case.method,
                "dtype": f"{case.shape.bits} bits" if case.shape.bits else case.shape.dtype,
                "grad_checkpoint": case.spec.get("grad_checkpoint", False),
                "optimizer": case.spec.get("optimizer"),
                "batch": case.spec["batch_size"],
                "tokens": case.spec["max_seq_length"],
                "layers": case.shape.layers,
                "measured": found["peak"],
                "predicted": predicted,
                "error": round(error, 4),
            }
        )
        line = f"{number}/{len(cases)} {case.shape.arch} {case.method}: {error:+.1%}"
        print(line, file=sys.stderr, flush=True)
    errors = [abs(row["error"]) for row in rows]
    return {
        "configurations": len(rows),
        "architectures": sorted({row["architecture"] for row in rows}),
        "median_error": round(median(errors), 4),
        "worst_error": max(errors),
        "limits": {"median_error": MEDIAN, "worst_error": WORST},
        "by_method": {
            method: round(median([abs(r["error"]) for r in rows if r["method"] == method]), 4)
            for method in sorted({row["method"] for row in rows})
        },
        "rows": rows,
    }


def measured(cases: list[Case]) -> list[dict[str, Any]]:
    """Return what ``fit`` takes: ``{config, kind, spec, weights, peak}`` of each case that runs."""
    rows = []
    for number, case in enumerate(cases, 1):
        try:
            found = measure(case)
        except RuntimeError as error:
            print(f"{number}/{len(cases)} left out: {error!s:.300}", file=sys.stderr, flush=True)
            continue
        rows.append({"kind": case.kind, "spec": case.spec, **found})
        print(f"{number}/{len(cases)} {found['peak']:,}", file=sys.stderr, flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=36, help="how many of the held-out ones")
    parser.add_argument("--fit", action="store_true", help="fit the coefficients and print them")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        asked = json.loads(args.child[0])
        case = Case(Shape(**asked.pop("shape")), **asked)
        print(json.dumps(peak(case, Path(args.child[1]))))
        return 0
    if args.fit:
        peaks = measured(fitted())
        (RESULTS / "memory_fitted.json").write_text(json.dumps(peaks, indent=1) + "\n")
        print(json.dumps(fit(peaks), indent=2))
        return 0
    result = compare(held_out()[: args.cases])
    keep("memory", result)
    return int(result["median_error"] > MEDIAN or result["worst_error"] > WORST)


if __name__ == "__main__":
    sys.exit(main())
