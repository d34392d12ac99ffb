"""Pieces of bytes as a file that is read forward."""

import io
from collections.abc import Iterator
from typing import Any


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)  # an empty one is not the end
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def stream(pieces: Iterator[bytes], buffer: int = io.DEFAULT_BUFFER_SIZE) -> io.BufferedReader:
    """Return what ``pieces`` yields as a file; what nobody reads is not fetched."""
    return io.BufferedReader(_Pieces(pieces), buffer)
