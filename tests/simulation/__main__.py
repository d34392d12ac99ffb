"""``python -m tests.simulation``: run many seeds, print what happened, fail on any violation."""

# ruff: noqa: T201
import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from tests.simulation.many import bench, run
from tests.simulation.simulation import Outcome, simulate


def table(counted: dict[str, object]) -> str:
    """The figures, for people."""
    lines = []
    for name, figure in counted.items():
        if isinstance(figure, dict):
            lines.append(f"{name}:")
            lines += [f"  {kind:<34}{count:>12,}" for kind, count in sorted(figure.items())]
        else:
            shown = f"{figure:,}" if isinstance(figure, int) else str(figure)
            lines.append(f"{name:<36}{shown:>12}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seconds", type=float, help="stop after so many, whatever is done")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--trace", type=int, metavar="SEED", help="run one seed and tell it")
    given = parser.parse_args()
    if given.trace is not None:
        return _tell(given.database, given.trace)
    began = time.monotonic()
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    violations: list[Outcome] = []
    seeds = range(given.first, given.first + given.seeds)
    done = 0
    for done, outcome in enumerate(run(given.database, seeds, given.jobs), 1):
        faults += outcome.faults
        counts += outcome.counts
        if outcome.violation:
            violations.append(outcome)
            print(f"VIOLATION {outcome.violation}", flush=True)
        if done % 500 == 0:
            print(f"{done} seeds, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if given.seconds and time.monotonic() - began > given.seconds:
            break
    counted: dict[str, object] = {
        "database": given.database,
        "seeds": done,
        "first seed": given.first,
        **dict(sorted(counts.items())),
        "faults": dict(faults),
        "faults together": faults.total(),
        "violations": len(violations),
        "seeds that violate": [outcome.seed for outcome in violations][:50],
        "seconds": round(time.monotonic() - began, 1),
    }
    print(table(counted))
    if given.json:
        given.json.write_text(json.dumps(counted, indent=1) + "\n")
    if violations:
        print(f"\nThe first one, told:\n{violations[0].trace}\n{violations[0].violation}")
    return 1 if violations else 0


def _tell(database: str, seed: int) -> int:
    with bench(database) as made:
        outcome = simulate(seed, made, traced=True)
    print(outcome.trace)
    print(outcome.violation or "Every promise was kept.")
    return 1 if outcome.violation else 0


if __name__ == "__main__":
    sys.exit(main())
