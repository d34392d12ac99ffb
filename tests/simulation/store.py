"""A store in memory that can be away, and that answers by the world's clock."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from espalier.errors import NotFound, Unavailable
from scheduler.store.base import OpenParts, Part, Readable, Stored, UploadLost, chunks
from tests.simulation.world import World


class MemoryStore:
    """The driver protocol over two dictionaries. What was not durable is never half there."""

    def __init__(self, world: World, objects: dict[str, bytes]) -> None:
        self._world = world
        self.objects = dict(objects)
        self._modified = dict.fromkeys(objects, world.clock())
        self._parts: dict[tuple[str, str], dict[int, bytes]] = {}
        self._handles = 0
        self.away_until = -1.0

    @property
    def place(self) -> str:
        return "memory"

    def probe(self) -> tuple[str, ...]:
        return ()

    def room(self) -> int | None:
        return None

    def _reach(self) -> None:
        if self._world.now < self.away_until:
            raise Unavailable("The store is away.")

    def _answer(self) -> None:
        """The work is done; the answer may be lost all the same."""
        if self._world.chance(0.01):
            self._world.fault("store answer lost")
            raise Unavailable("The store did not answer.")

    def begin(self, key: str) -> str:
        self._reach()
        self._handles += 1
        handle = f"h{self._handles}"
        self._parts[key, handle] = {}
        return handle

    def put_part(self, key: str, handle: str, part: Part, source: Readable) -> str:
        self._reach()
        data = b"".join(chunks(source, part.size))
        try:
            self._parts[key, handle][part.number] = data
        except KeyError:
            raise UploadLost("The upload is gone.") from None
        self._answer()
        return "t"

    def assemble(self, key: str, handle: str, parts: Sequence[Part]) -> None:
        self._reach()
        found = self._parts.pop((key, handle), None)
        if found is None:
            if key in self.objects:
                return
            raise UploadLost("The upload is gone.")
        self._write(key, b"".join(found[part.number] for part in parts))
        self._answer()

    def abort(self, key: str, handle: str) -> None:
        self._reach()
        self._parts.pop((key, handle), None)

    def uploads(self) -> Iterator[OpenParts]:
        return iter(())

    def move(self, source: str, target: str) -> None:
        self._reach()
        if source not in self.objects:
            raise NotFound(f"{source} is not in the store.")
        self._write(target, self.objects.pop(source))
        self._answer()

    def put(self, key: str, data: bytes) -> None:
        self._reach()
        self._write(key, data)
        self._answer()

    def _write(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self._modified[key] = self._world.clock()

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._reach()
        if key not in self.objects:
            raise NotFound(f"{key} is not in the store.")
        data = self.objects[key][start:]
        return iter((data if length is None else data[:length],))

    def size(self, key: str) -> int | None:
        self._reach()
        return len(self.objects[key]) if key in self.objects else None

    def delete(self, key: str) -> None:
        self._reach()
        self.objects.pop(key, None)
        self._answer()

    def list(self, prefix: str) -> Iterator[Stored]:
        self._reach()
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield Stored(key, len(self.objects[key]), self._modified[key])


class AtOnce:
    """An executor without threads: the work is done when it is handed over."""

    def submit(self, work: Callable[[], None]) -> "Future[None]":
        future: Future[None] = Future()
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return future
