"""A short storm over an embedded stack; ``make faults`` has the long one over a team's."""

import random
from pathlib import Path

from espalier.settings import Settings
from scheduler.db import Database
from scheduler.store import open_driver
from tests.acceptance.stacks import up
from tests.faults import evidence
from tests.faults.night import SHORT, Night, all_ended
from tests.faults.storm import EMBEDDED_FAULTS, Storm

KILLS, PIPELINES, ITERS, WORKERS = 6, 2, 120, 2


def test_six_kills_lose_nothing_and_do_nothing_twice(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    night = Night(PIPELINES, ITERS, WORKERS, tiny_model, dataset)
    undisturbed = night.undisturbed(tmp_path / "quiet")
    with up(tmp_path / "data", workers=WORKERS, settings=SHORT) as stack:
        night.push(stack)
        database = Database(f"sqlite:///{stack.data_dir / 'espalier.db'}")
        storm = Storm(stack, database, random.randrange(1_000_000), night.again(stack, tmp_path))
        night.submit(stack, tmp_path)
        storm.rage(KILLS, EMBEDDED_FAULTS)
        all_ended(database)
        assert stack.stop() == 0
    assert evidence.left_behind(tmp_path) == []
    night.judge(database, open_driver(Settings(data_dir=tmp_path / "data")), undisturbed)
    database.close()
