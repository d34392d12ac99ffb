"""How fast bytes may travel: one limit for all threads of a process, up and down apart."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from espalier.errors import InvalidInput
from espalier.settings import settings

#: Bytes that are read or written at once where nothing limits them; smallest piece where it does.
CHUNK, LEAST = 1 << 19, 1 << 14
#: Seconds of silence that may be made up for: a limit is an average, not a metronome.
_BURST = 0.25

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_RATE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([kmg]i?|)b?(?:/s)?", re.IGNORECASE)


class Limit:
    """Bytes a second in one direction; None limits nothing. Safe to share between threads."""

    def __init__(
        self,
        rate: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.rate = rate
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free_at = 0.0  # when all that was taken has had its time

    @property
    def chunk(self) -> int:
        """Bytes to move between two takes: an eighth of a second's, within bounds."""
        return CHUNK if self.rate is None else max(LEAST, min(CHUNK, self.rate // 8))

    def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may travel. Who asks first goes first."""
        if self.rate is None or count <= 0:
            return
        with self._lock:
            now = self._clock()
            start = max(self._free_at, now - _BURST)
            self._free_at = start + count / self.rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may send and receive."""

    up: Limit
    down: Limit

    @classmethod
    def of(cls, rate: int | None) -> "Limits":
        """Return limits of ``rate`` bytes a second in each direction."""
        return cls(Limit(rate), Limit(rate))


@lru_cache(maxsize=1)
def of_process() -> Limits:
    """The limits that all transfers of this process share (``bandwidth_bytes``)."""
    return Limits.of(settings().bandwidth_bytes)


def parse_rate(text: str) -> int:
    """Return bytes a second from ``20MB``, ``1.5 MiB/s`` or ``800k``. Raises InvalidInput."""
    found = _RATE.fullmatch(text.strip())
    rate = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if rate < 1:
        raise InvalidInput(f"{text!r} is no rate: write it as 20MB, 800kB or 1.5GiB, a second.")
    return rate
