"""Pages that follow what happens: server-sent events, each carrying a rendered partial.

One thread a process looks at the database, and only while somebody watches. A stream waits on a
condition, never on a connection; it ends after five minutes and the browser comes back with
``Last-Event-ID``.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from flask import Response, stream_with_context
from sqlalchemy.exc import SQLAlchemyError

from scheduler.db import Database
from scheduler.queries.pages import Pulse, pulse

#: Seconds between two looks at the database; of silence before a sign of life; of a stream.
LOOK, BREATH, LIFETIME = 0.5, 12.0, 300.0
#: Streams that are held open. Each holds a thread, and workers' reports need some as well: who
#: comes later is told how things stand, and asks again a little later.
STREAMS = 40
#: Milliseconds until a browser comes back: after a break, and when there are too many viewers.
RETRY, CROWDED_RETRY = 1_000, 10_000
#: The browser itself keeps "3 min ago" true: a text that differs in this only is not sent again.
_CLOCK = re.compile(r"(<time[^>]*>)[^<]*")
#: What ends a line of a stream; in HTML they are all white space.
_LINES = re.compile(r"\r\n|\r|\n")


class Hub:
    """Tells every stream of this process that something has happened."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changed = threading.Condition()
        self._viewers = 0
        self._pulse: Pulse | None = None
        self._looking = False

    @contextmanager
    def watching(self) -> Iterator[bool]:
        """Count a viewer; the first one starts the looking thread, the last one ends it.

        Yields whether this one may stay.
        """
        with self._changed:
            self._viewers += 1
            stays = self._viewers <= STREAMS
            if not self._looking:
                self._looking, self._pulse = True, None
                threading.Thread(target=self._look, name="live", daemon=True).start()
        try:
            yield stays
        finally:
            with self._changed:
                self._viewers -= 1

    def wait(self, seen: Pulse | None, seconds: float) -> Pulse | None:
        """Return the pulse as soon as it differs from ``seen``; None when time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._pulse not in (None, seen), seconds)
            return None if self._pulse == seen else self._pulse

    def _look(self) -> None:
        while True:
            try:
                with self._database.reading() as session:
                    fresh = pulse(session)
            except SQLAlchemyError:  # it is away: streams breathe on until it is back
                fresh = None
            with self._changed:
                if not self._viewers:
                    self._looking = False
                    return
                if fresh is not None and fresh != self._pulse:
                    self._pulse = fresh
                    self._changed.notify_all()
            time.sleep(LOOK)


@dataclass(frozen=True, slots=True)
class Message:
    """One server-sent event. Without a name htmx swaps it in; with one it is a DOM event."""

    data: str
    event: str | None = None
    id: str | None = None

    def __str__(self) -> str:
        head = f"id: {self.id}\n" if self.id is not None else ""
        head += f"event: {self.event}\n" if self.event else ""
        return head + "".join(f"data: {line}\n" for line in _LINES.split(self.data)) + "\n"


def named(event: str, value: Any) -> Message:
    """Return a DOM event whose ``detail.data`` is JSON."""
    return Message(json.dumps(value, separators=(",", ":")), event)


def batch(messages: list[Message], cursor: str) -> list[Message]:
    """Return messages that count as seen together: the last one carries the cursor."""
    return [*messages[:-1], replace(messages[-1], id=cursor)] if messages else []


class Sections:
    """The parts of a page, each sent only when it reads differently than before."""

    def __init__(self) -> None:
        self._sent: dict[str, str] = {}

    def changed(self, parts: Iterable[tuple[str, str]]) -> list[Message]:
        """Return one message that replaces the changed parts (element id, HTML), or none."""
        html = []
        for element, text in parts:
            told = _CLOCK.sub(r"\1", text)
            if self._sent.get(element) != told:
                self._sent[element] = told
                html.append(
                    f'<hx-partial hx-target="#{element}" hx-swap="outerMorph">{text}</hx-partial>'
                )
        return [Message("".join(html))] if html else []


def stream(hub: Hub, tell: Callable[[Pulse], Iterable[Message]]) -> Response:
    """Answer with a stream: ``tell`` is asked at once, and again whenever something happened.

    An ``end`` event is the last one: the browser does not come back.
    """

    def follow() -> Iterator[str]:
        deadline, seen = time.monotonic() + LIFETIME, None
        with hub.watching() as stays:
            yield f"retry: {RETRY if stays else CROWDED_RETRY}\n\n"
            while (left := deadline - time.monotonic()) > 0:
                fresh = hub.wait(seen, min(left, BREATH))
                if fresh is None:
                    yield ": here\n\n"
                    continue
                seen = fresh
                try:
                    messages = list(tell(fresh))
                except SQLAlchemyError:  # just gone: the browser comes back, and asks where it was
                    return
                for message in messages:
                    yield str(message)
                    if message.event == "end":
                        return
                if not stays:
                    return

    return Response(
        stream_with_context(follow()),
        content_type="text/event-stream; charset=utf-8",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
