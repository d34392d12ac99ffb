"""What the control plane costs while nothing happens: resident memory and share of a core.

``python -m benchmarks.footprint [--seconds N]``. Web, scheduler and broker of an embedded stack,
their children included; memory is the sum of resident sets (shared pages counted for each).
"""

import argparse
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.common import keep
from tests.acceptance.stacks import up


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(p.cpu_times().user + p.cpu_times().system for p in processes)


def main() -> None:
    """Measure for a while and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as scratch, up(Path(scratch) / "stack") as stack:
        time.sleep(10)  # what happens once after a start is not idle
        roles = {role: pid for role, pid in stack.pids.items() if not role.startswith("worker")}
        trees = {role: _tree(pid) for role, pid in roles.items()}
        before = {role: _cpu(tree) for role, tree in trees.items()}
        time.sleep(seconds)
        share = {role: (_cpu(tree) - before[role]) / seconds for role, tree in trees.items()}
        resident = {
            role: sum(p.memory_info().rss for p in tree) / 2**20 for role, tree in trees.items()
        }
    keep(
        "footprint",
        {
            "seconds": seconds,
            "resident_mib": {role: round(mib, 1) for role, mib in resident.items()},
            "resident_mib_total": round(sum(resident.values()), 1),
            "core_share": {role: round(s, 4) for role, s in share.items()},
            "core_share_total": round(sum(share.values()), 4),
            "goals": {"resident_mib_total": 400, "core_share_total": 0.03},
        },
    )


if __name__ == "__main__":
    main()
