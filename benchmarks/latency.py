"""From submission to the first step, paired with ``mlx_lm.lora`` started by hand.

``python -m benchmarks.latency [--runs N] [--quick]``. One idle worker whose warm child is ready
before either of a pair begins, so that neither pays for warming it; a tiny model, ``iters 2`` and a
report at each step. Ours begins when the job is committed and ends when its first loss is in the
database; theirs begins when the process is started and ends when the first loss is printed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import psutil

from benchmarks.common import keep, median, ratios
from espalier.client import Client
from espalier.textsql import write_dataset
from tests.acceptance.stacks import PATIENCE, Up, up
from worker.serving import WARM

FLAGS = {
    "iters": 2,
    "batch_size": 4,
    "num_layers": -1,
    "val_batches": 1,
    "steps_per_report": 1,
    "max_seq_length": 256,
    "learning_rate": 1e-4,
}

#: A row of mlx-lm's table of training losses, once its colours are taken off: "  1  2.642 …".
TRAINED = re.compile(r"\s*\d+\s+\d+\.\d+\s")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def _mlx_lm(model: Path, data: Path, adapters: Path) -> float:
    """Seconds from start to the first printed training loss."""
    command = [sys.executable, "-u", "-m", "mlx_lm", "lora", "--train", "--model", str(model)]
    command += ["--data", str(data), "--adapter-path", str(adapters)]
    for key, value in FLAGS.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    begun = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        seconds, seen = 0.0, []
        for line in process.stdout:
            seen.append(line)
            if not seconds and TRAINED.match(ANSI.sub("", line)):
                seconds = time.monotonic() - begun
    if not seconds:
        raise SystemExit(f"mlx_lm.lora printed no training loss:\n{''.join(seen)}")
    return seconds


def _espalier(stack: Up, client: Client) -> tuple[float, float]:
    """Seconds from the job's commit to its claim, and to its first loss in the database."""
    spec = {"kind": "train", "model": "team/tiny", "data": "team/textsql", **FLAGS}
    job_id = client.post("/api/v1/jobs", {"spec": spec})["id"]
    stack.run("wait", job_id)
    events = client.get(f"/api/v1/jobs/{job_id}/events")["events"]
    at = {e["type"]: datetime.fromisoformat(e["time"]) for e in reversed(events)}
    points = client.get(f"/api/v1/jobs/{job_id}/metrics")["points"]
    first = min(datetime.fromisoformat(p["time"]) for p in points if "train_loss" in p)
    begun = at["submitted"]
    return (at["claimed"] - begun).total_seconds(), (first - begun).total_seconds()


def _warmed(stack: Up) -> None:
    """Wait until the worker has a warm child that has come to rest."""
    deadline, before = time.monotonic() + PATIENCE, None
    while True:
        used = None
        for process in stack.processes():
            with suppress(psutil.Error):
                if WARM in process.cmdline():
                    used = (process.pid, sum(process.cpu_times()[:2]))
        if used is not None and used == before:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"no worker is warm after {PATIENCE:.0f} s")
        before = used
        time.sleep(0.5)  # the time over which it must have rested


def main() -> None:
    """Run pairs, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one pair")
    args = parser.parse_args()
    runs = 1 if args.quick else args.runs
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        subprocess.run([sys.executable, "-m", "worker.engine.tiny", home / "tiny"], check=True)
        (home / "data").mkdir()
        write_dataset(home / "data", rows=200, seed=0)
        with up(home / "stack") as stack, Client(stack.url, stack.token) as client:
            stack.run("model", "push", str(home / "tiny"), "team/tiny")
            stack.run("dataset", "push", str(home / "data"), "team/textsql")
            _espalier(stack, client)  # both once beforehand: kernels are compiled at first use
            _mlx_lm(home / "tiny", home / "data", home / "warm")
            claims, ours, theirs = [], [], []
            for _ in range(runs):
                _warmed(stack)
                claim, step = _espalier(stack, client)
                claims.append(claim)
                ours.append(step)
                _warmed(stack)
                theirs.append(_mlx_lm(home / "tiny", home / "data", home / "adapters"))
    keep(
        "latency_quick" if args.quick else "latency",
        {
            "runs": runs,
            "submit_to_claim_p50_s": median(claims),
            "submit_to_first_step_s": median(ours),
            "mlx_lm_start_to_first_step_s": median(theirs),
            "ratio_median": median(ratios(ours, theirs)),
            "goals": {"submit_to_claim_p50_s": 0.3, "ratio_median": 0.6},
        },
    )


if __name__ == "__main__":
    main()
