"""Which answers: the disk, the hub behind, or the disk because the hub is away."""

import json
import re
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from espalier.errors import Forbidden
from espalier.settings import Settings
from web.mirror.flight import Flight
from web.mirror.shelf import Shelf
from web.mirror.upstream import Reply, Upstream, UpstreamAway

DEFAULT_HUB = "https://huggingface.co"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of the hub behind: what its bytes are called, how many there are, where they lie."""

    commit: str
    etag: str
    size: int
    path: str


@dataclass(frozen=True, slots=True)
class Told:
    """A document of the hub behind; ``next`` is the path of its next page."""

    body: Any
    next: str | None


class Mirror:
    """One per process; raises UpstreamAway, UpstreamRefusal, Forbidden, StorageFull."""

    def __init__(self, config: Settings, needed: Callable[[], Collection[tuple[str, str]]]) -> None:
        token = config.upstream_token
        self.upstream = Upstream(
            config.upstream_hub or DEFAULT_HUB, token.get_secret_value() if token else None
        )
        self._shelf = Shelf(config.home / "mirror", config.mirror_bytes, needed)
        self._allow = config.upstream_allow
        self._flights: dict[str, Flight] = {}
        self._lock = threading.Lock()

    def document(self, kind: str, repo: str, rev: str | None, path: str) -> Told:
        """Return what the hub says at ``path`` (with its query) about a repository.

        What it says of a commit never changes and is asked once; of a branch, it is asked again,
        and what was kept counts only while the hub is away.
        """
        self._check(repo)
        kept = self._shelf.recall(kind, repo, path)
        if kept and rev and _COMMIT.fullmatch(rev):
            return Told(kept["body"], kept["next"])
        try:
            reply = self.upstream.get(path)
        except UpstreamAway:
            if kept is None:
                raise
            return Told(kept["body"], kept["next"])
        told = Told(_without_xet(json.loads(reply.content)), _next_page(reply))
        self._shelf.remember(kind, repo, path, asdict(told))
        return told

    def file(self, kind: str, repo: str, rev: str, path: str) -> Remote:
        """Return what is known of a file before its bytes are asked for."""
        self._check(repo)
        prefix = "" if kind == "models" else f"/{kind}"
        where = f"{prefix}/{repo}/resolve/{quote(rev, safe='')}/{quote(path)}"
        kept = self._shelf.recall(kind, repo, where)
        if kept and _COMMIT.fullmatch(rev):
            return Remote(**kept)
        try:
            remote = _remote(self.upstream.head(where))
        except UpstreamAway:
            if kept is None:
                raise
            return Remote(**kept)
        self._shelf.remember(kind, repo, where, asdict(remote))
        return remote

    def open(self, remote: Remote) -> Callable[[int, int], Iterator[bytes]]:
        """Return what yields ``(start, stop)`` of the file, from the disk or as it comes."""
        flight = self._flight(remote)
        if flight is None:
            path = self._shelf.blob(remote.etag)
            return lambda start, stop: _from_disk(path, start, stop)
        flight.begin()
        return flight.read

    def _flight(self, remote: Remote) -> Flight | None:
        """Return the file's download, begun if need be; None when the whole file is here."""
        with self._lock:  # a flight lands under it: there is no moment between the two answers
            flight = self._flights.get(remote.etag)
            if flight is None:
                if self._shelf.has(remote.etag):
                    return None
                self._shelf.make_room(remote.size)
                flight = self._flights[remote.etag] = Flight(
                    self.upstream,
                    remote.path,
                    remote.etag,
                    remote.size,
                    self._shelf.blob(remote.etag),
                    lambda: self._land(remote.etag),
                )
            return flight

    def _land(self, etag: str) -> None:
        with self._lock:
            self._flights.pop(etag, None)

    def _check(self, repo: str) -> None:
        if not any(fnmatchcase(repo, pattern) for pattern in self._allow):
            raise Forbidden(
                f"{repo} is not among the repositories that may be fetched from"
                f" {self.upstream.url}.",
                hint="An admin sets ESPALIER_UPSTREAM_ALLOW.",
            )


def _from_disk(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < stop and (data := file.read(min(stop - start, _CHUNK))):
            start += len(data)
            yield data


def _remote(reply: Reply) -> Remote:
    """Read a file's facts off the answer to HEAD; a redirect to where it lies carries them too."""
    headers = reply.headers
    etag = headers.get("x-linked-etag") or headers.get("etag") or ""
    size = headers.get("x-linked-size") or headers.get("content-length") or ""
    commit = headers.get("x-repo-commit", "")
    if not etag or not size.isdigit() or not commit:
        raise UpstreamAway(f"{reply.url} says neither size, ETag nor commit of the file.")
    return Remote(commit, etag.removeprefix("W/").strip('"'), int(size), urlsplit(reply.url).path)


def _without_xet(body: Any) -> Any:
    """Leave out what would have clients fetch by another protocol than this one."""
    if isinstance(body, list):
        return [_without_xet(item) for item in body]
    if isinstance(body, dict):
        return {k: _without_xet(v) for k, v in body.items() if k != "xetHash"}
    return body


def _next_page(reply: Reply) -> str | None:
    found = re.search(r'<([^>]+)>;\s*rel="next"', reply.headers.get("link", ""))
    if not found:
        return None
    parts = urlsplit(found[1])
    return f"{parts.path}?{parts.query}"
