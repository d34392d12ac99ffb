"""How a machine brings bytes into the store: the real routes, tried until they are taken."""

import hashlib
import io
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from espalier.errors import EspalierError, NotFound, Unavailable
from espalier.messages import FileEntry

if TYPE_CHECKING:
    from tests.simulation.work import Work

Then = Callable[[FileEntry], None]


def upload(work: "Work", data: bytes, then: Then) -> None:
    """Store ``data``, whatever it takes; then call ``then``, unless the attempt has gone."""
    sha256 = hashlib.sha256(data).hexdigest()
    entry = FileEntry(path="adapters.safetensors", sha256=sha256, size=len(data))
    if work.world.random.random() < 0.15:
        _Parts(work, data, entry, then).begin()
    else:
        _small(work, data, entry, then)


def _small(work: "Work", data: bytes, entry: FileEntry, then: Then) -> None:
    """One request for open, part and complete: what a small file comes to."""
    control = work.control

    def put() -> None:
        control.reach()
        control.blobs.keep(control.bench.database, data)

    def answered(result: Any) -> None:
        if work.gone:
            return
        if isinstance(result, Unavailable):
            work.process.after(5.0, partial(_small, work, data, entry, then))
        elif isinstance(result, EspalierError):
            control.ledger.fail("an upload is taken", result.detail)
        else:
            then(entry)

    work.process.send("upload", put, answered)


class _Parts:
    """The resumable route: open, one part, complete; each may be lost, late or doubled."""

    def __init__(self, work: "Work", data: bytes, entry: FileEntry, then: Then) -> None:
        self._work, self._data, self._entry, self._then = work, data, entry, then
        self._control, self._call = work.control, work.process.call("upload")
        self._owner = f"worker:{work.process.machine.worker_id}"
        self._upload_id = ""

    def begin(self) -> None:
        blobs, entry = self._control.blobs, self._entry
        self._ask(
            lambda: self._control.transact(
                self._call,
                lambda s: blobs.open_upload(s, self._owner, entry.sha256, entry.size),
            ),
            self._opened,
            self.begin,
        )

    def _opened(self, found: Any) -> None:
        if found.upload_id is None:
            self._then(self._entry)
            return
        self._upload_id = found.upload_id
        self._put()

    def _put(self) -> None:
        def put() -> None:
            self._control.reach()
            self._control.blobs.put_part(
                self._control.bench.database,
                self._upload_id,
                self._owner,
                1,
                io.BytesIO(self._data),
            )

        self._ask(put, lambda _: self._complete(), self._put)

    def _complete(self) -> None:
        def complete() -> None:
            self._control.reach()
            database = self._control.bench.database
            self._control.blobs.complete(database, self._upload_id, self._owner)

        self._ask(complete, lambda _: self._then(self._entry), self._complete)

    def _ask(
        self, work: Callable[[], Any], then: Callable[[Any], None], again: Callable[[], None]
    ) -> None:
        def answered(result: Any) -> None:
            if self._work.gone:
                return
            if isinstance(result, Unavailable):
                self._work.process.after(5.0, again)
            elif isinstance(result, NotFound):  # it has to begin afresh
                self._work.process.after(1.0, self.begin)
            elif isinstance(result, EspalierError):
                self._control.ledger.fail("an upload is taken", result.detail)
            else:
                then(result)

        self._work.process.send("upload", work, answered)
