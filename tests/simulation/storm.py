"""Faults of machines, at random moments until the horizon."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

from tests.simulation.broker import Broker
from tests.simulation.control import Control
from tests.simulation.machine import Machine
from tests.simulation.scheduling import Scheduler
from tests.simulation.world import HORIZON, World

#: Garbage collection's grace here: longer than any outage, far shorter than a world.
GC_GRACE = timedelta(hours=1)


class Storm:
    """Draws a handful of faults for its world, each with the moment of its end."""

    def __init__(
        self,
        world: World,
        control: Control,
        broker: Broker,
        machines: list[Machine],
        schedulers: list[Scheduler],
    ) -> None:
        self._world, self._control, self._broker = world, control, broker
        self._machines, self._schedulers = machines, schedulers
        kinds: list[tuple[int, Callable[[], None]]] = [
            (6, self._crash),
            (8, self._freeze),
            (3, self._terminate),
            (5, self._cut),
            (2, self._shut_door),
            (2, self._database),
            (2, self._store),
            (3, self._wipe_broker),
            (2, self._broker_away),
            (3, self._clock),
            (3, self._kill_scheduler),
            (2, self._second_scheduler),
            (2, self._stall_scheduler),
            (1, self._impostor),
            (2, lambda: control.sweep(GC_GRACE)),
        ]
        weights, works = zip(*kinds, strict=True)
        for work in world.random.choices(works, weights, k=world.random.randint(4, 14)):
            moment = world.random.uniform(5, HORIZON * 0.7)
            world.after(moment, partial(self._strike, work, 8))

    def _machine(self) -> Machine:
        """A machine to hurt: mostly one that has something to lose."""
        busy = [m for m in self._machines if m.process is not None and m.process.works]
        some = busy if busy and self._world.random.random() < 0.85 else self._machines
        return self._world.random.choice(some)

    def _strike(self, work: Callable[[], None], patience: int) -> None:
        """Do it when somebody works; not for ever, as some nights are quiet."""
        busy = any(m.process is not None and m.process.works for m in self._machines)
        if busy or not patience:
            work()
        elif self._world.now < HORIZON - 40:
            again = partial(self._strike, work, patience - 1)
            self._world.after(self._world.random.uniform(5, 30), again)

    def _span(self, low: float, high: float) -> float:
        """An outage's length; it ends with the horizon at the latest."""
        return min(self._world.random.uniform(low, high), HORIZON - self._world.now)

    def _long(self) -> float:
        """Shorter or longer than a lease; the morning may find it away still."""
        return self._world.random.choice((1.0, 3.0, 4.0)) * self._world.random.uniform(10, 120)

    def _crash(self) -> None:
        machine, keep = self._machine(), self._world.random.random() < 0.75
        self._world.fault("worker crash" if keep else "worker crash, disk lost", machine.name)
        machine.crash(keep, self._world.random.uniform(3, 300))

    def _freeze(self) -> None:
        """SIGSTOP, or a lid that was closed: shorter and longer than a lease."""
        machine = self._machine()
        seconds = self._world.random.choice(
            (self._span(5, 100), self._span(190, 500), self._span(200, 400))
        )
        self._world.fault("worker stopped a while", machine.name, round(seconds))
        if machine.process is not None:
            machine.process.frozen_until = self._world.now + seconds

    def _terminate(self) -> None:
        machine = self._machine()
        if machine.process is not None and machine.process.alive:
            self._world.fault("worker told to end", machine.name)
            process = machine.process
            process.after(0.0, process.stop)

    def _cut(self) -> None:
        machine, seconds = self._machine(), self._long()
        self._world.fault("network cut", machine.name, round(seconds))
        machine.cut_until = self._world.now + seconds

    def _shut_door(self) -> None:
        seconds = self._span(5, 400)
        self._world.fault("web away", round(seconds))
        self._control.door_shut_until = self._world.now + seconds

    def _database(self) -> None:
        seconds = self._span(5, 300)
        self._world.fault("database away", round(seconds))
        self._control.database_away_until = self._world.now + seconds

    def _store(self) -> None:
        seconds = self._span(10, 300)
        self._world.fault("store away", round(seconds))
        self._control.store.away_until = self._world.now + seconds

    def _wipe_broker(self) -> None:
        self._world.fault("broker wiped")
        self._broker.wipe()

    def _broker_away(self) -> None:
        seconds = self._span(5, 200)
        self._world.fault("broker away", round(seconds))
        self._broker.wipe()
        self._broker.away_until = self._world.now + seconds

    def _clock(self) -> None:
        jump = self._world.random.choice(
            (self._world.random.uniform(30, 900), self._world.random.uniform(-5, 0))
        )
        self._world.fault("clock forward" if jump > 0 else "clock back", round(jump, 1))
        self._world.skew += jump

    def _kill_scheduler(self) -> None:
        scheduler = self._world.random.choice(self._schedulers)
        if self._world.random.random() < 0.5:
            scheduler.kill(fuse=self._world.random.randint(0, 2))
            return
        self._world.fault("scheduler killed")
        scheduler.kill()
        self._world.after(self._span(1, 300), scheduler.start)

    def _second_scheduler(self) -> None:
        self._world.fault("two schedulers")
        self._schedulers.append(Scheduler(self._world, self._control, self._broker))

    def _stall_scheduler(self) -> None:
        seconds = self._span(10, 300)
        self._world.fault("scheduler stopped a while", round(seconds))
        scheduler = self._world.random.choice(self._schedulers)
        scheduler.paused_until = self._world.now + seconds

    def _impostor(self) -> None:
        """A second machine with the first one's token, under its name."""
        first = self._machine()
        self._world.fault("name used twice", first.name)
        second = Machine(self._world, self._control, self._broker, first.name, first.worker_id)
        self._world.after(self._span(30, 300), partial(self._unplug, second))

    def _unplug(self, machine: Machine) -> None:
        machine.boot = lambda: None  # type: ignore[method-assign]
        if machine.process is not None:
            machine.process.alive = False
        for rightful in self._machines:  # its queue is its own again
            if rightful.worker_id == machine.worker_id and rightful.process is not None:
                process = rightful.process
                self._broker.consume(rightful.worker_id, partial(process.after, 0.0, process.take))
