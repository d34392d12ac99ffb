"""What people see while bytes move: a bar on a terminal, a line now and then elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from espalier import bandwidth
from espalier.bandwidth import Limits
from espalier.cli.common import size_text, stderr
from espalier.settings import settings

#: Seconds between two lines where there is no terminal.
LINE_SECONDS = 10.0

RateFlag = Annotated[
    str | None,
    typer.Option("--limit-rate", metavar="RATE", help="Bytes a second at most: 20MB, 800kB."),
]


def limits(rate: str | None) -> Limits:
    """Return what ``--limit-rate`` says, else the settings' limit. Raises InvalidInput."""
    return Limits.of(bandwidth.parse_rate(rate)) if rate else bandwidth.of_process()


def near() -> Path:
    """Return where a worker on this machine keeps blobs: what it has need not travel."""
    return settings().home / "cache" / "blobs"


@contextmanager
def moving(verb: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what takes the bytes that have moved, from any thread, of ``total``.

    Shows bytes, rate and the time that is left.
    """
    console = stderr()
    if not console.is_terminal:
        yield Lines(verb, total, lambda line: console.print(line)).moved
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(complete_style="green", finished_style="green"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(verb, total=total)
        yield lambda moved: progress.advance(task, moved)


class Lines:
    """For a log: a line every ten seconds, and none for what takes less."""

    def __init__(
        self,
        verb: str,
        total: int,
        show: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verb, self._total, self._show, self._clock = verb, total, show, clock
        self._lock = threading.Lock()
        self._begun = self._told = clock()
        self._done = 0

    def moved(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = self._clock()
            if now - self._told < LINE_SECONDS:
                return
            self._told = now
            rate = self._done / (now - self._begun)
            line = f"{self._verb}: {size_text(self._done)} of {size_text(self._total)}"
            if rate > 0:
                left = max(self._total - self._done, 0) / rate
                line += f", {size_text(rate)}/s, {_duration(left)} left"
        self._show(line)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes}:{seconds:02}"
