"""`make demo ONCE=1`, but for the installation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.acceptance.stacks import PATIENCE


@pytest.mark.slow
def test_the_demo_runs_the_main_job_and_says_so_in_its_last_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "espalier.cli", "demo", "--once", "--data-dir", str(tmp_path)],
        env={k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["demo"] == "ok"
    kinds = {"train", "eval", "fuse", "quantize", "export"}
    assert line["jobs"].keys() == kinds
    assert line["artifacts"].keys() == kinds | {"dataset", "model"}
    assert "proved perplexity_below_base" in done.stdout
    stayed = [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])
    ]
    assert not stayed
