"""How a loop is told to end: a signal is noted at once and obeyed where the loop waits.

Not in the middle of its work: an exception from a signal's handler in the middle of a query is
followed by a rollback on a busy connection, which raises an error of its own in its place, and the
loop would go on as if its database had been away.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Ended(Exception):
    """SIGTERM or SIGINT arrived."""


class Ending:
    """Whether this process was told to end. To be made in its main thread."""

    def __init__(self) -> None:
        self._told = self._waiting = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A place to wait in: a signal ends it with Ended, as does one that came before."""
        try:
            self._waiting = True
            if self._told:
                raise Ended
            yield
        finally:
            self._waiting = False

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._told = True
        if self._waiting:
            raise Ended
