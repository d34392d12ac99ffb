"""Once a day the store is swept, in a process of its own that takes its memory with it."""

import logging
import subprocess
import sys
import time

log = logging.getLogger(__name__)

#: Seconds after a start, so that a stack that is just up is left alone; then daily.
FIRST, EVERY = 600.0, 86_400.0


class Housekeeping:
    """Starts ``python -m scheduler gc`` when it is due, never two at once."""

    def __init__(self, command: tuple[str, ...] = ("-P", "-m", "scheduler", "gc")) -> None:
        self._command = (sys.executable, *command)
        self._due = time.monotonic() + FIRST
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> None:
        """Start what is due, and note how the last one ended."""
        if self._process is not None and (code := self._process.poll()) is not None:
            if code:
                log.error("Garbage collection ended with %d; it is tried again tomorrow.", code)
            self._process = None
        if self._process is None and time.monotonic() >= self._due:
            self._due = time.monotonic() + EVERY
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        """End what runs; garbage collection goes on where it was another day."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
