"""The child's output as text: cut where characters and lines end, counted in bytes of UTF-8."""

import re
import threading

from espalier.messages import LogChunk

#: Bytes of one chunk, at most.
CHUNK_BYTES = 64 << 10
#: Bytes that may wait to be reported; what a flood brings beyond them is counted, not kept.
PENDING_BYTES = 4 << 20
#: Bytes kept of the end of the log, to tell why a child died.
TAIL_BYTES = 16 << 10
_NOTE = re.compile(rb"\n\[(\d+) bytes of output were dropped here\]\n")


class LogText:
    """A buffer between the thread that reads the child and the one that reports."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._dropped = 0
        self._offset = 0
        self._tail = b""

    def write(self, data: bytes) -> None:
        with self._lock:
            self._tail = (self._tail + data)[-TAIL_BYTES:]
            if len(self._pending) + len(data) > PENDING_BYTES:
                self._dropped += len(data)
                return
            self._own_up()
            self._pending += data

    def drop(self) -> None:
        """Throw out what waits: there is no room for it. What comes after it will say so."""
        with self._lock:
            self._dropped += len(self._pending)
            for note in _NOTE.finditer(self._pending):  # it stands for more than its own bytes
                self._dropped += int(note[1]) - len(note[0])
            self._pending.clear()

    def _own_up(self) -> None:
        if self._dropped:
            self._pending += b"\n[%d bytes of output were dropped here]\n" % self._dropped
            self._dropped = 0

    @property
    def tail(self) -> str:
        return self._tail.decode("utf-8", "replace")

    def take(self, *, final: bool = False) -> LogChunk | None:
        """Return the next chunk; an unfinished last line waits unless ``final``."""
        with self._lock:
            if final and not self._pending:
                self._own_up()
            piece = bytes(self._pending[:CHUNK_BYTES])
            full = len(piece) == CHUNK_BYTES
            if final and not full:
                end = len(piece)
            else:
                end = piece.rfind(b"\n") + 1 or (_whole_characters(piece) if full else 0)
            if not end:
                return None
            chunk = LogChunk(offset=self._offset, text=_text(piece[:end]))
            del self._pending[:end]
            self._offset += len(chunk.text.encode())
            return chunk


def _whole_characters(piece: bytes) -> int:
    """Return the length of ``piece`` without a UTF-8 character cut at its end."""
    for back in range(1, min(4, len(piece)) + 1):
        byte = piece[-back]
        if byte >= 0xC0:  # the first byte of a character: is it all there?
            size = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return len(piece) - back if size > back else len(piece)
        if byte < 0x80:
            break
    return len(piece)


def _text(data: bytes) -> str:
    # PostgreSQL stores no NUL.
    return data.decode("utf-8", "replace").replace("\0", "\ufffd")
