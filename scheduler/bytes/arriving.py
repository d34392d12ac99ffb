"""Uploads hashed while they arrive: at the end little is left to read back.

What is hashed is what the store gives back, as it is without this: part by part, behind the parts
as they come. It counts only if nobody wrote into a part afterwards, which the store can tell
(Directory.seal), and it lives in this process: after a restart, with another web process or on
another store the whole upload is read back at its end.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition

from espalier.errors import EspalierError
from scheduler.bytes.blobrows import Digests, Hashing
from scheduler.store.base import Driver, Part, staging_key
from scheduler.store.directory import Directory

#: Uploads whose digests are kept; of more that are under way at a time, the oldest are read back.
MOST = 256
#: Threads that hash: with fewer than cores, requests are still answered.
THREADS = 2


class _Upload:
    """How far one upload is hashed, and what waits."""

    def __init__(self, size: int) -> None:
        self.hashing = Hashing(size)
        self.hashed: list[Part] = []
        self.waiting: dict[int, Part] = {}
        self.busy = False
        self.ended = False  # nothing more is to be hashed behind the parts


class Arriving:
    """The uploads under way, hashed behind their parts where the store allows it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._uploads: OrderedDict[str, _Upload] = OrderedDict()
        self._changed = Condition()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="arriving")

    def received(self, upload_id: str, size: int, handle: str, part: Part) -> None:
        """Note a part that the store has, of an upload of ``size`` bytes; returns at once."""
        if not isinstance(self._driver, Directory):
            return
        with self._changed:
            upload = self._uploads.setdefault(upload_id, _Upload(size))
            self._uploads.move_to_end(upload_id)
            if len(self._uploads) > MOST:
                self._uploads.popitem(last=False)
            upload.waiting[part.number] = part
            if not upload.busy and not upload.ended and len(upload.hashed) + 1 in upload.waiting:
                upload.busy = True
                self._pool.submit(self._follow, self._driver, upload_id, handle, upload)

    def assemble(self, upload_id: str, size: int, handle: str, parts: Sequence[Part]) -> Digests:
        """Make one object of the parts; return the digests of what the store has then.

        Raises UploadLost, NotFound, Unavailable.
        """
        key = staging_key(upload_id)
        upload = self._end(upload_id)
        hashing = Hashing(size)
        if isinstance(self._driver, Directory):
            sealed = self._driver.seal(key, handle, parts)
            if sealed and upload is not None and upload.hashed == list(parts[: len(upload.hashed)]):
                hashing = upload.hashing
        else:
            self._driver.assemble(key, handle, parts)
        for chunk in self._driver.open(key, hashing.done):
            hashing.update(chunk)
        return hashing.digests()

    def forget(self, upload_id: str) -> None:
        """Note that an upload is no more."""
        with self._changed:
            self._uploads.pop(upload_id, None)

    def _end(self, upload_id: str) -> _Upload | None:
        """Take the upload, once all that follows on each other is hashed."""
        with self._changed:
            upload = self._uploads.pop(upload_id, None)
            if upload is not None:
                self._changed.wait_for(lambda: not upload.busy)
                upload.ended = True
            return upload

    def _follow(self, driver: Directory, upload_id: str, handle: str, upload: _Upload) -> None:
        for part in self._next(upload):
            hashing = upload.hashing.copy()
            try:
                for chunk in driver.open_part(staging_key(upload_id), handle, part):
                    hashing.update(chunk)
            except (EspalierError, OSError):
                upload.ended = True
            if hashing.done == part.start + part.size:
                upload.hashing = hashing
                upload.hashed.append(part)
            else:
                upload.ended = True

    def _next(self, upload: _Upload) -> Iterator[Part]:
        """Yield the parts that follow on each other, as long as there are any."""
        while True:
            with self._changed:
                part = None if upload.ended else upload.waiting.pop(len(upload.hashed) + 1, None)
                if part is None:
                    upload.busy = False
                    self._changed.notify_all()
                    return
            yield part
