"""Virtual time: one heap of what is to happen, one seeded source of chance, no threads."""

import heapq
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random

START = datetime(2026, 1, 5, 22, 0, tzinfo=UTC)
#: Virtual seconds in which faults happen, and after which a world that has not settled is stuck.
HORIZON, PATIENCE = 800.0, 6 * 3600.0


class Violation(AssertionError):
    """The system broke a promise."""


class World:
    """Time, chance, and the record of what happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = 0.0
        self.skew = 0.0  # of the database's clock
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.trace: list[tuple[float, str, tuple[object, ...]]] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    @property
    def calm(self) -> bool:
        """Whether the time of faults is over."""
        return self.now >= HORIZON

    def clock(self) -> datetime:
        """What the database believes the time is."""
        return START + timedelta(seconds=self.now + self.skew)

    def after(self, delay: float, work: Callable[[], None]) -> None:
        """Do ``work`` in so many virtual seconds."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + max(delay, 0.0), self._count, work))

    def chance(self, probability: float) -> bool:
        """True with this probability, and never once faults are over."""
        return self.random.random() < probability and not self.calm

    def fault(self, kind: str, *about: object) -> None:
        """Count a fault that is injected now."""
        self.faults[kind] += 1
        self.note(f"FAULT {kind}", *about)

    def note(self, what: str, *about: object) -> None:
        self.trace.append((self.now, what, about))

    def run(self, until: float, done: Callable[[], bool] | None = None) -> None:
        """Let things happen until the time has come, or ``done``."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, work = heapq.heappop(self._heap)
            work()
            if done is not None and done():
                return
        self.now = max(self.now, until)

    def told(self) -> str:
        """The trace, for people."""
        lines = (
            f"{moment:9.2f}  {what:<18} {' '.join(str(a) for a in about)}"
            for moment, what, about in self.trace
        )
        return "\n".join(lines)


class Shuffled:
    """``secrets`` and ``time`` for ids that the seed decides: they break ties in SQL."""

    def __init__(self, world: World) -> None:
        self._world, self._random = world, Random(world.seed ^ 0x1D5)

    def randbits(self, bits: int) -> int:
        return self._random.getrandbits(bits)

    def time(self) -> float:
        return START.timestamp() + self._world.now
