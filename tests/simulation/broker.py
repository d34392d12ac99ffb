"""A broker that loses, repeats, delays and reorders what it is given, and is sometimes wiped."""

from collections import defaultdict
from collections.abc import Callable

from espalier.errors import Unavailable
from scheduler.placing.dispatch import Ticket
from tests.simulation.world import World


class Broker:
    """One queue a worker. A ticket waits until a process of its worker takes it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._queues: dict[str, list[str]] = defaultdict(list)
        self._consumers: dict[str, Callable[[], None]] = {}
        self.away_until = -1.0

    def publish(self, ticket: Ticket) -> None:
        """Raises Unavailable: also for a ticket that was queued all the same."""
        world = self._world
        if world.now < self.away_until:
            raise Unavailable("The broker is away.")
        copies = 1
        if world.chance(0.08):
            world.fault("ticket lost")
            copies = 0
        elif world.chance(0.06):
            world.fault("ticket doubled")
            copies = 2
        for _ in range(copies):
            late = world.chance(0.1)
            if late:
                world.fault("ticket late")
            delay = world.random.uniform(20, 200) if late else world.random.uniform(0, 1)
            world.after(delay, lambda: self._deliver(ticket))
        if world.chance(0.02):
            world.fault("publish: error though queued")
            raise Unavailable("The broker did not answer.")

    def _deliver(self, ticket: Ticket) -> None:
        if self._world.now < self.away_until:
            return  # it died with what was on its way
        self._queues[ticket.worker_id].append(ticket.attempt_id)
        wake = self._consumers.get(ticket.worker_id)
        if wake:
            wake()

    def consume(self, worker_id: str, wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever something may be taken from the worker's queue."""
        self._consumers[worker_id] = wake
        wake()

    def take(self, worker_id: str) -> str | None:
        """Return the next attempt id: it is the taker's now, and lost with it."""
        queue = self._queues[worker_id]
        return queue.pop(0) if queue and self._world.now >= self.away_until else None

    def wipe(self) -> None:
        self._queues.clear()
