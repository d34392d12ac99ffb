"""Schedulers: one, or two at once; they crash between commit and publish, and start again."""

from sqlalchemy.exc import OperationalError

from scheduler.placing.dispatch import Dispatcher, Ticket
from tests.simulation.broker import Broker
from tests.simulation.control import Control
from tests.simulation.world import World


class _Killed(BaseException):
    """The scheduler process died where it stood."""


class Scheduler:
    """The loop of ``python -m scheduler`` around the real dispatcher."""

    def __init__(self, world: World, control: Control, broker: Broker) -> None:
        self._world, self._control, self._broker = world, control, broker
        self._alive = False
        self._turn = 0  # of the loop: a ring makes earlier turns void
        self._fuse: int | None = None
        self.paused_until = -1.0
        self.start()

    def start(self) -> None:
        if not self._alive:
            config, database = self._control.config, self._control.bench.database
            self._alive, self._dispatcher = True, Dispatcher(database, self._publish, config)
            self._next(self._world.random.uniform(0, 2))

    def kill(self, fuse: int | None = None) -> None:
        """Die now, or at the ``fuse``-th ticket of a tick."""
        self._fuse = fuse
        if fuse is None:
            self._alive = False

    def ring(self) -> None:
        """The bell at the broker; it may not be heard."""
        if self._alive and not self._world.chance(0.1):
            self._next(self._world.random.uniform(0.05, 2.0))

    def _next(self, delay: float) -> None:
        self._turn += 1
        turn = self._turn
        self._world.after(delay, lambda: self._loop(turn))

    def _loop(self, turn: int) -> None:
        world = self._world
        if not self._alive or turn != self._turn:
            return
        if world.now < self.paused_until:
            self._next(self.paused_until - world.now)
            return
        try:
            due = self._tick()
        except _Killed:
            world.fault("scheduler killed while it sends")
            self._alive, self._fuse = False, None
            world.after(world.random.uniform(1, 60), self.start)
            return
        finally:
            self._control.ledger.observe(None)
        # A loop may always be late; asking every few seconds would show nothing more.
        self._next(max(due, world.random.uniform(20, 90)))

    def _tick(self) -> float:
        try:
            if self._world.now < self._control.database_away_until:
                raise OperationalError("tick", {}, Exception("the database is away"))
            return self._dispatcher.tick()
        except OperationalError:
            self._dispatcher.forgive()
            return 1.0

    def _publish(self, ticket: Ticket) -> None:
        if self._fuse is not None:
            self._fuse -= 1
            if self._fuse < 0:
                raise _Killed
        self._world.counts["tickets"] += 1
        self._broker.publish(ticket)
