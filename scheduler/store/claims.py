"""Which put wrote last into each part of an upload's file: one slot each, in a file beside it.

With it an upload can be hashed while it arrives. A put holds a part's slot before it writes a byte
into the part, also after another put has taken the slot; all under the locks of the parts' file.
So a slot that still names a put says that nobody else wrote there since.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scheduler.store.base import Part

SUFFIX = ".puts"
_SLOT = 32


class Claims:
    """The slots of one parts' file, open; without a file, of an older upload, nobody's claims."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def are_held(self, number: int, tag: str) -> bool:
        """Say whether the put ``tag`` has written last into the part; True without a file."""
        return self._descriptor is None or self._read(number) == tag

    def hold(self, number: int, tag: str) -> None:
        if self._descriptor is not None:
            os.pwrite(self._descriptor, tag.encode().ljust(_SLOT), number * _SLOT)

    def agree(self, parts: Sequence[Part]) -> bool:
        """Say for certain that each part is what the put of its tag wrote."""
        return self._descriptor is not None and all(
            self._read(part.number) == part.tag for part in parts
        )

    def _read(self, number: int) -> str:
        assert self._descriptor is not None
        return os.pread(self._descriptor, _SLOT, number * _SLOT).decode().rstrip(" \0")


def beside(parts: Path) -> Path:
    """Return where the claims of a parts' file are kept."""
    return parts.with_name(parts.name + SUFFIX)


def is_live(path: Path) -> bool:
    """Say whether this is a file of claims whose parts' file is still there."""
    return path.name.endswith(SUFFIX) and path.with_name(path.name.removesuffix(SUFFIX)).exists()


@contextmanager
def opened(parts: Path) -> Iterator[Claims]:
    """Open the claims of a parts' file."""
    try:
        descriptor = os.open(beside(parts), os.O_RDWR)
    except FileNotFoundError:
        yield Claims(None)
        return
    try:
        yield Claims(descriptor)
    finally:
        os.close(descriptor)
