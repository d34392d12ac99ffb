"""One seed: a small team's night, from the first submission to the last job's end."""

import logging
import os
import random
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from sqlalchemy import update

from espalier import ids
from espalier.settings import settings
from scheduler.models import Project
from scheduler.placing import fleet
from tests.simulation.broker import Broker
from tests.simulation.control import Control
from tests.simulation.databases import Bench
from tests.simulation.machine import Machine
from tests.simulation.people import People
from tests.simulation.scheduling import Scheduler
from tests.simulation.storm import GC_GRACE, Storm
from tests.simulation.world import HORIZON, PATIENCE, Shuffled, Violation, World


@dataclass
class Outcome:
    """What a seed came to; ``violation`` is None when every promise was kept."""

    seed: int
    violation: str | None = None
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    trace: str = ""


class Simulation:
    """All actors of one world over one bench."""

    def __init__(self, seed: int, bench: Bench) -> None:
        self.world = World(seed)
        bench.clock = self.world.clock
        self._schedulers: list[Scheduler] = []
        if self.world.random.random() < 0.5:
            self._let_preempt(bench)
        self._control = Control(self.world, bench, self._ring)
        self._broker = Broker(self.world)
        self._machines = [
            self._join(f"mac-{n}") for n in range(self.world.random.choice((1, 2, 2, 3, 4)))
        ]
        self._schedulers.append(Scheduler(self.world, self._control, self._broker))
        self._people = People(self.world, self._control, self._machines)
        Storm(self.world, self._control, self._broker, self._machines, self._schedulers)

    def _let_preempt(self, bench: Bench) -> None:
        with bench.database.transaction() as session:
            session.execute(update(Project).values(preemptible=True))

    def _ring(self) -> None:
        for scheduler in self._schedulers:
            scheduler.ring()

    def _join(self, name: str) -> Machine:
        with self._control.bench.database.transaction() as session:
            worker_id = fleet.join(session, name)[0].id
        return Machine(self.world, self._control, self._broker, name, worker_id)

    def run(self) -> None:
        """Until the horizon everything may fail; after it everything must come right."""
        world, ledger = self.world, self._control.ledger
        world.run(HORIZON)
        self._calm()
        world.run(world.now + PATIENCE, ledger.settled)
        self._control.sweep(GC_GRACE)
        world.skew += 2 * GC_GRACE.total_seconds()  # the next sweep takes what nobody needs
        self._control.sweep(GC_GRACE)
        ledger.settle(self._control.store.objects)

    def _calm(self) -> None:
        """Everything that was away is back, and stays."""
        control, now = self._control, self.world.now
        control.door_shut_until = control.database_away_until = control.store.away_until = now
        self._broker.away_until = now
        for scheduler in self._schedulers:
            scheduler.paused_until = now
            scheduler.start()
        for machine in self._machines:
            machine.boot()
        self._people.tidy()


#: Leases and patience are the real ones; reports are fewer, as each costs the same.
SETTINGS = {"ESPALIER_REPORT_SECONDS": "45"}


@contextmanager
def configured() -> Iterator[None]:
    """Let the code under test find the simulation's settings."""
    with patch.dict(os.environ, SETTINGS):
        settings.cache_clear()
        yield
    settings.cache_clear()


@contextmanager
def chosen_by(world: World) -> Iterator[None]:
    """Ids and jitter are the seed's: they break ties in SQL."""
    shuffled = Shuffled(world)
    before = random.getstate()
    random.seed(world.seed)
    with (
        patch.object(ids, "secrets", shuffled),
        patch.object(ids, "time", shuffled),
        patch.object(ids, "_last", 0),
    ):
        yield
    random.setstate(before)


class _Errors(logging.Handler):
    """What the code under test calls an error, and lives with: nobody races here, so it is one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(f"{record.getMessage()} {record.exc_info and record.exc_info[1]}")


@contextmanager
def _listening() -> Iterator[list[str]]:
    handler, logger = _Errors(), logging.getLogger("scheduler")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    yield handler.told
    logger.removeHandler(handler)
    logger.level, logger.propagate = before


def simulate(seed: int, bench: Bench, traced: bool = False) -> Outcome:
    """Run one seed on a fresh bench. Anything but a kept promise is in ``violation``."""
    outcome = Outcome(seed)
    bench.fresh()
    with chosen_by(World(seed)), _listening() as errors:
        simulation = Simulation(seed, bench)
        world = simulation.world
        try:
            simulation.run()
        except Violation as error:
            outcome.violation = str(error)
        except Exception as error:  # the code under test raised what no caller expects
            world.note("raised", traceback.format_exc())
            outcome.violation = f"seed {seed} at {world.now:.2f}: {type(error).__name__}: {error}"
    if errors and not outcome.violation:
        outcome.violation = f"seed {seed}: nothing is refused by the database: {errors[0]}"
    outcome.faults, outcome.counts = world.faults, world.counts
    if traced or outcome.violation:
        outcome.trace = world.told()
    return outcome
