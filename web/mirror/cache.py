"""Which answers: the disk, the hub behind, or the disk because the hub is away."""

import json
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from espalier.errors import Conflict, Forbidden
from espalier.settings import Settings
from web.mirror.flight import Flight
from web.mirror.grants import Grants
from web.mirror.room import Repos, Room, Swept
from web.mirror.shelf import Shelf, Space
from web.mirror.upstream import Reply, Upstream, UpstreamAway, UpstreamRefusal, UpstreamSpoilt

DEFAULT_HUB = "https://huggingface.co"
#: What a question about a repository may carry; anything else would only be kept in vain.
_PARAMETERS = frozenset({"recursive", "expand", "blobs", "securityStatus", "cursor", "limit"})
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of the hub behind: what its bytes are called, how many there are, where they lie.

    ``etag`` is theirs, ``key`` what they are called on this disk.
    """

    commit: str
    etag: str
    size: int
    path: str
    key: str


@dataclass(frozen=True, slots=True)
class Told:
    """A document of the hub behind; ``next`` is the path of its next page."""

    body: Any
    next: str | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A repository as far as it is kept: ``size`` and ``have`` are bytes of the files known."""

    kind: str
    repo: str
    closed: bool
    files: int
    size: int
    have: int
    needed: bool


class Mirror:
    """One per process; several share a disk. ``needed`` tells what jobs and aliases need.

    ``readers`` are the ids of the people who ask: what was fetched with somebody's own token is
    for those alone whose tokens were accepted (grants). Raises UpstreamAway, UpstreamSpoilt,
    UpstreamRefusal, Forbidden, InvalidInput, StorageFull.
    """

    def __init__(self, config: Settings, needed: Callable[[], Repos]) -> None:
        self.upstream = Upstream(config.upstream_hub or DEFAULT_HUB, config.upstream_token)
        self.shelf = Shelf(config.home / "mirror")
        self.grants = Grants(self.shelf)
        self.pinned: Callable[[], Repos] = tuple  # what is being fetched ahead: see Prefetcher
        self.room = Room(
            self.shelf,
            config.mirror_bytes,
            config.mirror_days,
            lambda: {*needed(), *self.pinned()},
        )
        self._allow, self._deny = config.upstream_allow, config.upstream_deny
        self._flights: dict[str, Flight] = {}
        self._lock = threading.Lock()

    # --- For those who ask by name --------------------------------------------------------

    def document(
        self, kind: str, repo: str, rev: str | None, path: str, readers: Collection[str] = ()
    ) -> Told:
        """Return what the hub says at ``path`` (with its query) about a repository.

        What it says of a commit never changes and is asked once; of a branch, it is asked again,
        and what was kept counts only while the hub is away.
        """
        self.check(repo)
        return self.read(self.grants.space(kind, repo, readers), self.upstream, rev, path)

    def file(
        self, kind: str, repo: str, rev: str, path: str, readers: Collection[str] = ()
    ) -> Remote:
        """Return what is known of a file before its bytes are asked for."""
        self.check(repo)
        return self.find(self.grants.space(kind, repo, readers), self.upstream, rev, path)

    def opener(self, remote: Remote) -> Callable[[int, int], Iterator[bytes]]:
        """Return what gives the bytes ``(start, stop)`` of the file, from the disk or as it comes.

        Nothing is fetched before it is called.
        """

        def opened(start: int, stop: int) -> Iterator[bytes]:
            found = self.flight(remote, self.upstream)
            if not isinstance(found, Flight):
                return _from_disk(found, start, stop)
            found.begin()
            return found.read(start, stop)

        return opened

    def check(self, repo: str) -> None:
        """Raise Forbidden for a repository that the lists keep out; names match in any case."""
        name = repo.casefold()
        if any(fnmatchcase(name, pattern.casefold()) for pattern in self._deny):
            raise Forbidden(
                f"{repo} is among the repositories that must not be fetched from"
                f" {self.upstream.url}.",
                hint="An admin sets ESPALIER_UPSTREAM_DENY.",
            )
        if not any(fnmatchcase(name, pattern.casefold()) for pattern in self._allow):
            raise Forbidden(
                f"{repo} is not among the repositories that may be fetched from"
                f" {self.upstream.url}.",
                hint="An admin sets ESPALIER_UPSTREAM_ALLOW.",
            )

    # --- In a space, with somebody's token -------------------------------------------------

    def read(self, space: Space, upstream: Upstream, rev: str | None, path: str) -> Told:
        """Return a document; see `document`."""
        question = _canonical(path)

        def ask() -> dict[str, Any]:
            reply = upstream.get(question)
            self._check_redirect(reply)
            return asdict(Told(_without_xet(_json(reply)), _next_page(reply)))

        kept = self._answer(space, rev, question, ask)
        commit = kept["body"].get("sha") if isinstance(kept["body"], dict) else None
        if isinstance(commit, str) and _COMMIT.fullmatch(commit) and rev != commit:
            by_commit = f"/api/{space.kind}/{space.repo}/revision/{commit}"
            if self.shelf.recall(space, by_commit) is None:
                self.shelf.remember(space, by_commit, kept)
        return Told(kept["body"], kept["next"])

    def find(self, space: Space, upstream: Upstream, rev: str, path: str) -> Remote:
        """Return what is known of a file; see `file`."""
        kept = self._answer(
            space, rev, where(space, rev, path), lambda: self.ask(space, upstream, rev, path)
        )
        return Remote(**kept)

    def ask(self, space: Space, upstream: Upstream, rev: str, path: str) -> dict[str, Any]:
        """Ask the hub itself for a file's facts, whatever is kept, and keep them by its commit."""
        reply = upstream.head(where(space, rev, path))
        self._check_redirect(reply)
        commit, etag, size = _facts(reply)
        at = where(space, commit, path)
        found = asdict(Remote(commit, etag, size, at, space.key(etag)))
        self.shelf.remember(space, at, found)
        return found

    def flight(self, remote: Remote, upstream: Upstream) -> "Flight | BinaryIO":
        """Return the file, open; or its download, begun if need be."""
        target = self.shelf.blob(remote.key)
        with self._lock:  # a flight lands under it: there is no moment between the two answers
            flight = self._flights.get(remote.key)
            if flight is not None:
                return flight
            try:
                os.utime(target)  # it was used: others are thrown out before it
                return target.open("rb")
            except FileNotFoundError:
                coming = sum(flight.coming for flight in self._flights.values())
                self.room.make(remote.key, remote.size, coming)
            flight = self._flights[remote.key] = Flight(
                upstream,
                remote.path,
                remote.etag,
                remote.size,
                target,
                lambda: self._land(remote.key),
            )
            return flight

    def _answer(
        self, space: Space, rev: str | None, question: str, ask: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return what is kept or what the hub says now, and keep that.

        In a closed space what is kept also counts when the hub refuses: this server's own token
        may not read it, and the tokens of those who may are not kept.
        """
        kept = self.shelf.recall(space, question)
        if kept and ((rev and _COMMIT.fullmatch(rev)) or self.upstream.is_resting):
            return kept
        try:
            told = ask()
        except UpstreamAway:
            if kept is None:
                raise
            return kept
        except UpstreamRefusal as refusal:
            if kept is None or not (space.closed and refusal.is_about_access):
                raise
            return kept
        self.shelf.remember(space, question, told)
        return told

    def _check_redirect(self, reply: Reply) -> None:
        """Hold the lists against the repository that a renamed one's address led to."""
        parts = [unquote(part) for part in urlsplit(reply.url).path.split("/") if part]
        while parts and parts[0] in ("api", "resolve-cache", "models", "datasets"):
            del parts[0]
        self.check("/".join(parts[:2]))

    def _land(self, key: str) -> None:
        with self._lock:
            self._flights.pop(key, None)

    # --- What is kept ---------------------------------------------------------------------

    def overview(self, readers: Collection[str]) -> list[Kept]:
        """Return what is kept of every repository that the readers may see."""
        needed = set(self.room.needed())
        found = []
        for space in self.shelf.spaces():
            if space.closed and not self.grants.allow(space, readers):
                continue
            files = self.shelf.files_of(space)
            found.append(
                Kept(
                    space.kind,
                    space.repo,
                    space.closed,
                    len(files),
                    sum(files.values()),
                    sum(self.shelf.have(key, size) for key, size in files.items()),
                    (space.kind, space.repo) in needed,
                )
            )
        return found

    def evict(self, kind: str, repo: str) -> Swept:
        """Throw out a repository, open and closed. Raises Conflict when it is needed."""
        if (kind, repo) in set(self.room.needed()):
            raise Conflict(
                f"{repo} is needed by an open job, by the adapter of an alias, or is being"
                " fetched now.",
                hint="End what needs it first: `espalier jobs`, `espalier artifacts`.",
            )
        swept = [self.room.empty(Space(kind, repo, closed)) for closed in (False, True)]
        return Swept(sum(one.files for one in swept), sum(one.bytes for one in swept))


def where(space: Space, rev: str, path: str) -> str:
    """Return a file's address, from the hub's root; a branch's slashes are part of its name."""
    prefix = "" if space.kind == "models" else f"/{space.kind}"
    return f"{prefix}/{space.repo}/resolve/{quote(rev, safe='')}/{quote(path)}"


def _from_disk(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < stop and (data := file.read(min(stop - start, _CHUNK))):
            start += len(data)
            yield data


def _canonical(path: str) -> str:
    """Return a question in one form, however a client puts it."""
    parts = urlsplit(path)
    query = []
    for key, value in sorted(parse_qsl(parts.query)):
        plain = {"true": "true", "1": "true", "false": "", "0": ""}.get(value.lower(), value)
        if key in _PARAMETERS and plain:
            query.append((key, value if key in ("cursor", "limit") else plain))
    return parts.path + (f"?{urlencode(query)}" if query else "")


def _json(reply: Reply) -> Any:
    try:
        body = json.loads(reply.content)
    except (ValueError, RecursionError) as error:
        raise UpstreamSpoilt(f"{reply.url} is no JSON: {type(error).__name__}.") from error
    if not isinstance(body, dict | list):
        raise UpstreamSpoilt(f"{reply.url} is neither an object nor a list.")
    return body


def _facts(reply: Reply) -> tuple[str, str, int]:
    """Read commit, ETag and size off the answer to HEAD; a redirect to the bytes has them too."""
    headers = reply.headers
    etag = headers.get("x-linked-etag") or headers.get("etag") or ""
    size = headers.get("x-linked-size") or headers.get("content-length") or ""
    commit = headers.get("x-repo-commit", "")
    if not etag or not size.isdecimal() or not _COMMIT.fullmatch(commit):
        raise UpstreamSpoilt(f"{reply.url} says neither size, ETag nor commit of the file.")
    return commit, etag.removeprefix("W/").strip('"'), int(size)


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
