"""What the benchmarks share: medians, the machine's name, where results are kept."""

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def median(values: Sequence[float]) -> float:
    """Median of at least one value."""
    return statistics.median(values)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Pair by pair, so that a machine whose speed drifts does not spoil the comparison."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def keep(name: str, figures: dict[str, Any]) -> None:
    """Print the figures and write them to ``results/<name>.json``."""
    document = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(document, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
