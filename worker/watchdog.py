"""When a child hangs, and when it holds too much: decided from what it showed, time by time.

Pure: whoever samples the child passes what was seen, and how much time that stands for.

A child shows progress by its events; each was said on purpose, between two pieces of work. Its log
is no sign: a loop that retries, a thread that warns, a bar that is drawn again write for ever
while nothing gets done. The longest wait between two signs, phase by phase, teaches what this run
on this machine takes; the first sign of a phase has nothing to be measured by and gets long.

A wait that is too long is a hang only where nothing works: neither CPU time nor bytes read and
written by the whole group. A slow step on a slow machine, a kernel that is being compiled and a
large model on its way from the disk all show some, and get many times the patience; not for ever,
because a deadlock may spin. On Metal the CPU rests while the GPU computes one long step: there
it is the learned wait that protects.
"""

from collections import deque
from dataclasses import dataclass

#: A child is patiently waited for this many times as long as it ever took in this phase.
TIMES_LONGEST = 10
#: And, while it works, this many times as long as that.
TIMES_BUSY = 10
#: CPU seconds per second, and bytes per second, below which a group does nothing. A thread that
#: looks at something once a second uses less; handing a long step to a GPU uses more.
IDLE_CPU = 0.002
IDLE_BYTES = 4096
#: Of its limit: what a child must not hold even for one sample, and where it is watched closely.
FAR_OVER = 1.1
NEAR = 0.8


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process group holds now (bytes), and what it has used since its start."""

    memory: int
    cpu_seconds: float = 0.0
    io_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Hang:
    """What was seen of a child that hangs; times in seconds."""

    phase: str
    waited: float
    longest: float | None  # wait in this phase before this one; None: it had shown nothing yet
    busy: bool  # it used CPU time or the disk all the same

    def __str__(self) -> str:
        before = "it had shown none there yet"
        if self.longest is not None:
            before = f"its longest wait there had been {self.longest:.1f} s"
        idle = "though it kept the CPU or the disk busy" if self.busy else "and no work either"
        return f"no progress for {self.waited:.0f} s in its phase {self.phase} ({before}), {idle}"


class Watchdog:
    """Knows one child's waits. ``heard`` and ``tick`` are called under one lock."""

    def __init__(self, first_seconds: float, floor_seconds: float, phase: str = "starting") -> None:
        self._first = first_seconds
        self._floor = floor_seconds
        self._phase = phase
        self._longest: dict[str, float] = {}
        self._waited = 0.0
        self._last: Usage | None = None
        self._window: deque[tuple[float, float, int]] = deque()  # seconds, CPU seconds, bytes
        self._width = 0.0

    def heard(self, phase: str | None = None) -> None:
        """It showed progress; ``phase`` is given when another one begins."""
        self._longest[self._phase] = max(self._waited, self._longest.get(self._phase, 0.0))
        self._phase = phase or self._phase
        self._waited = self._width = 0.0
        self._window.clear()

    @property
    def patience(self) -> float:
        """Seconds that an idle child may show no progress in this phase."""
        longest = self._longest.get(self._phase)
        if longest is None:
            return self._first
        return max(self._floor, TIMES_LONGEST * longest)

    def tick(self, seconds: float, usage: Usage) -> Hang | None:
        """``seconds`` have passed; say whether the child hangs.

        They are the time between two looks as it was meant to be: a look that came late because
        the worker was stopped, its Mac asleep or its machine busy says nothing of the child.
        """
        last, self._last = self._last or usage, usage
        cpu = max(0.0, usage.cpu_seconds - last.cpu_seconds)  # less: a helper is gone
        moved = max(0, usage.io_bytes - last.io_bytes)
        self._window.append((seconds, cpu, moved))
        self._waited += seconds
        self._width += seconds
        patience = self.patience
        while self._width - self._window[0][0] >= patience:
            self._width -= self._window.popleft()[0]
        if self._waited < patience:
            return None
        busy = self._busy()
        if busy and self._waited < TIMES_BUSY * patience:
            return None
        return Hang(self._phase, self._waited, self._longest.get(self._phase), busy)

    def _busy(self) -> bool:
        cpu = sum(cpu for _, cpu, _ in self._window)
        moved = sum(moved for _, _, moved in self._window)
        return cpu > IDLE_CPU * self._width or moved > IDLE_BYTES * self._width


class MemoryGuard:
    """Holds a child to its limit: two samples above it in a row, or one far above."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._over = False

    def near(self, memory: int) -> bool:
        return memory > NEAR * self._limit

    def too_much(self, memory: int) -> bool:
        """Take a sample; say whether the child has to be ended for it."""
        before, self._over = self._over, memory > self._limit
        return (before and self._over) or memory > FAR_OVER * self._limit
