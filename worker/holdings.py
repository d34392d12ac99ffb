"""What the control plane was told of this machine's cache, and what has changed since.

Looked up where it lies, not noted where it happens: several workers of a machine share one cache,
and each of them tells what all of them brought and threw out.
"""

from espalier.messages import Heartbeat
from worker.cache import BlobCache


class Holdings:
    """Used by one thread. What was told counts when it was answered, and is told again until."""

    def __init__(self, cache: BlobCache) -> None:
        self._cache = cache
        self._told: dict[str, int] | None = None
        self._looked: tuple[int, ...] = ()
        self._now: dict[str, int] = {}

    def whole(self) -> dict[str, int]:
        """Return everything that is there."""
        self._looked = self._cache.stamp()  # before the look: what comes meanwhile is seen next
        self._now = self._cache.holdings()
        return self._now

    def has_changed(self) -> bool:
        """Say whether there is something to tell."""
        try:
            if self._told is None or self._cache.stamp() != self._looked:
                self.whole()
        except OSError:  # the disk has other worries, and the next look tells
            return False
        return self._now != self._told

    def tell(self, beat: Heartbeat, *, whole: bool = False) -> Heartbeat:
        """Return the heartbeat with what there is to tell."""
        if whole or self._told is None:
            return beat.model_copy(update={"blobs": self.whole()})
        added = {name: size for name, size in self._now.items() if name not in self._told}
        removed = tuple(sorted(self._told.keys() - self._now.keys()))
        return beat.model_copy(update={"added": added, "removed": removed})

    def heard(self) -> None:
        """What was told last has been answered."""
        self._told = self._now
