"""Repositories that are fetched ahead, so that nobody waits for them later.

A prefetch is one JSON file below ``prefetch/``; how far it is, is read off the files themselves.
It is done in the background by the process that was asked, one after the other, and by whichever
process finds it unfinished and unattended: after a restart it goes on where it was. Only a
person's own token is not there any more then, as it is kept in memory alone.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import SecretStr

from espalier.errors import EspalierError, InvalidInput, NotFound, StorageFull
from espalier.refs import check_path
from web.mirror.cache import Mirror, Remote, where
from web.mirror.flight import Flight
from web.mirror.shelf import Space
from web.mirror.upstream import Upstream, UpstreamAway, UpstreamRefusal
from web.mirror.wishes import Prefetch, Records, Wish

log = logging.getLogger(__name__)

#: Files that are fetched at once.
AT_ONCE = 4
#: Seconds before the next try while the hub is away; after the last one it is given up.
PAUSES = (2.0, 5.0, 15.0, 60.0, 300.0)
#: Seconds between two looks for prefetches that nobody attends to, and between two sweeps.
LOOK, SWEEP = 60.0, 3600.0
#: Days that an ended prefetch is told of.
TOLD_DAYS = 30
#: Seconds in which a stopping server is noticed by one that waits for a file.
_PATIENCE = 0.5

T = TypeVar("T")


class Prefetcher:
    """One per process. Safe to ask from many threads."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._records = Records(mirror.shelf.root / "prefetch")
        self._tokens: dict[str, SecretStr] = {}
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        mirror.pinned = self._records.active

    def ask(self, wish: Wish, by: str, token: SecretStr | None = None) -> Prefetch:
        """Have it fetched, and tell how far it is: asked again, only that.

        What failed is begun again. Raises Forbidden, InvalidInput.
        """
        Space(wish.kind, wish.repo)
        check_path(wish.revision)
        self._mirror.check(wish.repo)
        id_ = self._records.name(wish, by if token else "")
        with self._lock:
            found = self._records.read(id_)
            if found is None or not found.is_open:
                fresh = Prefetch(id_, wish, by, own=token is not None, asked_at=time.time())
                if found is not None and found.state == "done" and not token:
                    fresh = replace(fresh, commit=found.commit, files=found.files)
                found = fresh
                self._records.write(found)
            if token:
                self._tokens[id_] = token
        self.start()
        self._queue.put(id_)
        return self._told(found)

    def find(self, id_: str, reader: str | None) -> Prefetch:
        """Return one of them. Raises NotFound, also for what another's token fetches."""
        found = self._records.read(id_)
        if found is None or not found.is_seen(reader):
            raise NotFound(f"There is no prefetch {id_!r:.40}.", hint="GET /api/v1/mirror.")
        return self._told(found)

    def all(self, reader: str | None) -> list[Prefetch]:
        """Return those that the reader may see, the newest first."""
        found = [one for one in self._records.all() if one.is_seen(reader)]
        return [self._told(one) for one in sorted(found, key=lambda one: -one.asked_at)]

    def start(self) -> None:
        """Begin to work, with what an ended process has left."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Let go of what is under way: the next start continues it."""
        self._ended.set()
        self._queue.put("")
        if self._thread is not None:
            self._thread.join(10.0)

    # --- In the background ----------------------------------------------------------------

    def _run(self) -> None:
        sweep = time.monotonic() + LOOK
        self._adopt()
        while not self._ended.is_set():
            try:
                id_ = self._queue.get(timeout=LOOK)
            except queue.Empty:
                self._adopt()
                if time.monotonic() >= sweep:
                    sweep = time.monotonic() + SWEEP
                    self._sweep()
                continue
            if id_:
                self._attend(id_)

    def _adopt(self) -> None:
        for one in self._records.all():
            if one.is_open:
                self._queue.put(one.id)

    def _sweep(self) -> None:
        try:
            swept = self._mirror.room.sweep()
        except Exception:  # the database is away: nobody knows what is needed
            log.warning("The mirror was not swept.", exc_info=True)
            return
        self._records.forget(time.time() - TOLD_DAYS * 86_400)
        if swept.files:
            log.info("%d files that nobody used are gone: %d bytes.", swept.files, swept.bytes)

    def _attend(self, id_: str) -> None:
        """Do one, unless another process does."""
        with self._records.attending(id_) as mine:
            found = self._records.read(id_) if mine else None
            if found is None or not found.is_open:
                return
            found = replace(found, state="running", error=None, hint=None)
            self._records.write(found)
            try:
                self._records.write(self._fetch_all(found))
            except _Ended:
                return
            except EspalierError as error:
                log.warning("%s was not fetched: %s", found.wish.repo, error.detail)
                self._fail(id_, error.detail, error.hint)
            except Exception as error:  # a fault of ours must not end the thread
                log.exception("%s was not fetched", found.wish.repo)
                self._fail(id_, f"{type(error).__name__}: see the server's log.", None)
            self._tokens.pop(id_, None)

    def _fail(self, id_: str, error: str, hint: str | None) -> None:
        found = self._records.read(id_)
        if found:
            ended = time.time()
            self._records.write(
                replace(found, state="failed", error=error, hint=hint, ended_at=ended)
            )

    def _fetch_all(self, one: Prefetch) -> Prefetch:
        one, upstream = self._list(one)
        self._records.write(one)
        if one.size > self._mirror.room.budget:
            raise StorageFull(
                f"{one.wish.repo} has {one.size:,} bytes of these files; the mirror may hold"
                f" {self._mirror.room.budget:,}.",
                hint="Raise ESPALIER_MIRROR_BYTES, or ask for fewer files.",
            )
        space = Space(one.wish.kind, one.wish.repo, one.closed)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="prefetch") as pool:
            try:
                list(pool.map(lambda file: self._fetch(space, upstream, one, file), one.files))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return replace(one, state="done", ended_at=time.time())

    def _list(self, one: Prefetch) -> tuple[Prefetch, Upstream]:
        """Find out what there is, as this server; where it may not, with the person's token."""
        server = self._mirror.upstream
        try:
            return self._listed(one, Space(one.wish.kind, one.wish.repo), server), server
        except UpstreamRefusal as refusal:
            if not (one.own and refusal.is_about_access):
                raise
        token = self._tokens.get(one.id)
        if token is None:
            raise InvalidInput(
                f"Your token for {one.wish.repo} is not known any more: the server was restarted,"
                " and keeps none on its disk.",
                hint="Ask again with it; what is here stays.",
            )
        mine = server.with_token(token)
        space = Space(one.wish.kind, one.wish.repo, closed=True)
        return replace(self._listed(one, space, mine), closed=True), mine

    def _listed(self, one: Prefetch, space: Space, upstream: Upstream) -> Prefetch:
        """Keep all that a client will ask first; return it with its commit and files."""
        wish, mirror = one.wish, self._mirror
        root = f"/api/{wish.kind}/{wish.repo}"
        rev = quote(wish.revision, safe="")
        paths = [f"{root}/revision/{rev}", f"{root}/refs"]
        if wish.revision == "main":
            paths.append(root)
        told = [self._patiently(partial(mirror.read, space, upstream, None, p)) for p in paths]
        commit = str(told[0].body["sha"])
        tree = f"{root}/tree/{commit}"
        self._patiently(partial(mirror.read, space, upstream, commit, tree))  # the root alone
        entries: list[dict[str, Any]] = []
        path: str | None = f"{tree}?recursive=true"
        while path:
            page = self._patiently(partial(mirror.read, space, upstream, commit, path))
            entries += page.body
            path = page.next
        wanted = [e["path"] for e in entries if e.get("type") == "file" and wish.wants(e["path"])]
        if not wanted:
            raise NotFound(
                f"{wish.repo}@{wish.revision} has no file that matches"
                f" {', '.join(wish.include) or 'what models are made of'}.",
                hint="Say which files with --include.",
            )
        # Gated repositories are listed to everybody: the right shows at a file. Whatever is kept.
        self._patiently(partial(mirror.ask, space, upstream, commit, wanted[0]))
        if space.closed:
            mirror.grants.give(space, one.by)
        found = [self._find(space, upstream, commit, p) for p in wanted]
        files = tuple((p, r.key, r.size) for p, r in zip(wanted, found, strict=True))
        return replace(one, commit=commit, files=files)

    def _find(self, space: Space, upstream: Upstream, commit: str, path: str) -> Remote:
        check_path(path)
        self._check_ended()
        return self._patiently(partial(self._mirror.find, space, upstream, commit, path))

    def _fetch(
        self, space: Space, upstream: Upstream, one: Prefetch, file: tuple[str, str, int]
    ) -> None:
        self._check_ended()
        remote = self._find(space, upstream, str(one.commit), file[0])

        def fly() -> None:
            found = self._mirror.flight(remote, upstream)
            if not isinstance(found, Flight):
                found.close()
                return
            while not found.wait(_PATIENCE):
                self._check_ended()

        self._patiently(fly)
        # A client asks by the branch it was told; while the hub is away that must be known too.
        at = where(space, one.wish.revision, file[0])
        self._mirror.shelf.remember(space, at, asdict(remote))

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do ``work``, again while the hub is away; what it raises in the end is raised."""
        for pause in PAUSES:
            self._check_ended()
            with suppress(UpstreamAway):
                return work()
            self._ended.wait(pause)
        self._check_ended()
        return work()

    def _check_ended(self) -> None:
        if self._ended.is_set():
            raise _Ended

    def _told(self, one: Prefetch) -> Prefetch:
        return replace(one, have=sum(self._mirror.shelf.have(k, s) for _, k, s in one.files))


class _Ended(Exception):
    """The server stops."""
