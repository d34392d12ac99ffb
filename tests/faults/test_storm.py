"""A night of faults: everything is killed at random, and nothing is lost or done twice.

STORM_KILLS (50), STORM_PIPELINES (12), STORM_ITERS and STORM_SEED make another night of it.
ESPALIER_FAULTS_REPORT names a directory for the table.
"""

import os
import random
import time
from pathlib import Path
from typing import Any

from scheduler.db import Database
from scheduler.store import open_driver
from tests.acceptance.stacks import up
from tests.faults import evidence, stacks
from tests.faults.night import SHORT, Night, all_ended
from tests.faults.storm import FAULTS, Storm

KILLS = int(os.environ.get("STORM_KILLS", "50"))
PIPELINES = int(os.environ.get("STORM_PIPELINES", "12"))
ITERS = int(os.environ.get("STORM_ITERS", "300"))
WORKERS = 3


def test_a_night_of_kills(tmp_path: Path, tiny_model: Path, dataset: Path) -> None:
    night = Night(PIPELINES, ITERS, WORKERS, tiny_model, dataset)
    undisturbed = night.undisturbed(tmp_path / "quiet")
    seed = int(os.environ.get("STORM_SEED", random.randrange(1_000_000)))
    with stacks.team(tmp_path / "team") as team:
        config = team.config()
        with up(tmp_path / "data", workers=WORKERS, settings=SHORT | team.settings) as stack:
            night.push(stack)
            database = Database(config.sql_url)
            storm = Storm(stack, database, seed, night.again(stack, tmp_path), team)
            night.submit(stack, tmp_path)
            began = time.monotonic()
            storm.rage(KILLS, FAULTS)
            all_ended(database)
            lasted = time.monotonic() - began
            assert stack.stop() == 0
        assert evidence.left_behind(tmp_path / "data") == []
        assert not stacks.is_open(int(stack.url.rpartition(":")[2]))
        _tell(database, storm, lasted)
        assert len(storm.kills) == KILLS
        night.judge(database, open_driver(config), undisturbed)
        database.close()
    assert evidence.left_behind(tmp_path) == []


def _tell(database: Database, storm: Storm, seconds: float) -> None:
    rows = evidence.table(database, storm.kills)
    made = evidence.totals(database)
    counts = ", ".join(f"{n} {what}" for what, n in made.items())
    lines = [
        f"{len(storm.kills)} kills (seed {storm.seed}) in {seconds:.0f} s on {WORKERS} workers:"
        f" {counts}.",
        "",
        evidence.markdown(evidence.HEAD, [row.cells() for row in rows]),
    ]
    print("\n" + "\n".join(lines))
    figures: dict[str, Any] = {
        "seed": storm.seed,
        "seconds": round(seconds, 1),
        "workers": WORKERS,
        **made,
    }
    figures["rows"] = [vars(row) for row in rows]
    figures["kills"] = list(evidence.story(storm.kills))
    evidence.save("storm", figures, "\n".join(lines))
