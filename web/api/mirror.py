"""``/api/v1``: what is kept of the hub behind this one, and what is fetched ahead."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Literal

from flask import request
from pydantic import Field, SecretStr

from espalier.errors import InvalidInput
from espalier.patterns import UPSTREAM_HEADER
from espalier.specs import Frozen
from scheduler import access
from scheduler.queries import Document
from web.api.models import Answer, Time
from web.auth import actor
from web.mirror import Prefetch, Wish
from web.routes import Routes
from web.services import services

_MAX_TOKEN = 4096


class PrefetchRequest(Frozen):
    """Files of a repository of the hub behind, to be here before somebody waits for them.

    A gated repository that this server may not read is fetched with your own token of that hub,
    in the header X-Upstream-Token. It is kept in memory until that is done, and what it fetched
    is seen only by people whose own token was accepted as well, in the last 30 days.
    """

    repo: str = Field(max_length=200, description="org/name")
    kind: Literal["models", "datasets"] = "models"
    revision: str = Field("main", min_length=1, max_length=200)
    include: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        (), max_length=100, description="patterns of paths or names; default: weights and text"
    )


class PrefetchAnswer(Answer):
    id: str
    repo: str
    kind: str
    revision: str
    include: list[str]
    state: Literal["waiting", "running", "done", "failed"]
    commit: str | None
    files: int
    size: int = Field(description="bytes of all files")
    have: int = Field(description="bytes that are here")
    closed: bool = Field(description="fetched with your token, for you")
    error: str | None
    hint: str | None
    asked_at: Time
    ended_at: Time | None


class KeptAnswer(Answer):
    repo: str
    kind: str
    closed: bool
    files: int
    size: int = Field(description="bytes of the files that were asked for")
    have: int = Field(description="bytes of them that are here")
    needed: bool = Field(description="by an open job or an alias: it is never thrown out")


class MirrorAnswer(Answer):
    """``repos`` and ``prefetches`` are those you may see."""

    upstream: str
    budget: int
    days: int | None
    held: int
    repos: list[KeptAnswer]
    prefetches: list[PrefetchAnswer]


class EvictedAnswer(Answer):
    files: int
    bytes: int


def add(routes: Routes) -> None:
    """Add the routes of the mirror."""

    @routes.route("GET", "/mirror", answer=MirrorAnswer)
    def get_mirror() -> Document:
        """Tell what is kept of the hub behind, and what is fetched ahead."""
        return overview(actor().user_id)

    @routes.route("POST", "/mirror/prefetch", status=202, answer=PrefetchAnswer)
    def prefetch(body: PrefetchRequest) -> Document:
        """Fetch a repository in the background; asked again, tell how far it is."""
        wish = Wish(body.kind, body.repo, body.revision, body.include)
        return told(services().prefetcher.ask(wish, str(actor().user_id), _token()))

    @routes.route("GET", "/mirror/prefetch/<prefetch_id>", answer=PrefetchAnswer)
    def get_prefetch(prefetch_id: str) -> Document:
        """Tell how far a prefetch is."""
        return told(services().prefetcher.find(prefetch_id, actor().user_id))

    @routes.route("DELETE", "/mirror/<kind>/<org>/<name>", answer=EvictedAnswer)
    def evict(kind: str, org: str, name: str) -> Document:
        """Throw out what is kept of a repository. Admins only; not what a job or alias needs."""
        access.require_admin(actor())
        swept = services().mirror.evict(kind, f"{org}/{name}")
        with services().database.transaction() as session:
            detail = {"kind": kind, "bytes": swept.bytes}
            access.audit(session, actor(), "mirror.evict", f"{org}/{name}", detail)
        return asdict(swept)


def overview(reader: str | None) -> Document:
    """Return what a person (an id) may see of the mirror: MirrorAnswer's document."""
    found = services()
    return {
        "upstream": found.mirror.upstream.url,
        "budget": found.settings.mirror_bytes,
        "days": found.settings.mirror_days,
        "held": found.mirror.room.held(),
        "repos": [asdict(kept) for kept in found.mirror.overview({reader} if reader else ())],
        "prefetches": [told(one) for one in found.prefetcher.all(reader)],
    }


def told(one: Prefetch) -> Document:
    """Return a prefetch as PrefetchAnswer's document."""
    return {
        "id": one.id,
        "repo": one.wish.repo,
        "kind": one.wish.kind,
        "revision": one.wish.revision,
        "include": list(one.wish.include),
        "state": one.state,
        "commit": one.commit,
        "files": len(one.files),
        "size": one.size,
        "have": one.have,
        "closed": one.closed,
        "error": one.error,
        "hint": one.hint,
        "asked_at": _stamp(one.asked_at),
        "ended_at": _stamp(one.ended_at) if one.ended_at else None,
    }


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()


def _token() -> SecretStr | None:
    text = request.headers.get(UPSTREAM_HEADER, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isprintable() and " " not in text and len(text) < _MAX_TOKEN):
        raise InvalidInput(f"{UPSTREAM_HEADER} holds no token.", hint="Send the hub's own.")
    return SecretStr(text)
