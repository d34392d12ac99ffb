"""The hub behind the mirror, over HTTP. A token goes to it and to nobody else."""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic import SecretStr

from espalier.errors import EspalierError, Unavailable

# At its own level httpx logs every address, and those of a hub's files are signed.
logging.getLogger("httpx").setLevel(logging.WARNING)

#: Seconds for a connection, and for the next bytes: clients give up on an answer after ten.
CONNECT_SECONDS, READ_SECONDS = 3.0, 6.0
#: Seconds after a failure in which what is kept is answered without asking first.
REST_SECONDS = 15.0
#: Bytes of a document: a page of a tree has a thousand entries, a repository's siblings 50,000.
MAX_DOCUMENT = 32 << 20
#: Redirects inside the hub (a repository that was renamed) that are followed.
_MAX_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class UpstreamAway(Unavailable):
    """The hub behind this one does not answer, and nothing of what was asked for is kept here."""

    status, code, title = 504, "upstream_away", "Upstream hub away"


class UpstreamSpoilt(Unavailable):
    """The hub behind this one answered with what cannot be right; asking again may help."""

    status, code, title = 502, "upstream_spoilt", "Unusable answer from upstream"


class UpstreamRefusal(EspalierError):
    """The hub behind this one refused: ``name`` is its own error code, such as GatedRepo."""

    code, title = "upstream_refusal", "Refused upstream"

    def __init__(self, status: int, name: str, detail: str, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.http_status = status
        self.name = name

    @property
    def is_about_access(self) -> bool:
        """Whether another token might be answered otherwise: hubs hide what one may not see."""
        return self.http_status == 403 or self.name in ("RepoNotFound", "GatedRepo")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer without its connection: header names are lower case."""

    url: str
    headers: Mapping[str, str]
    content: bytes


class Upstream:
    """One hub, asked with one token. Thread-safe.

    Raises UpstreamAway, UpstreamSpoilt and UpstreamRefusal.
    """

    def __init__(self, url: str, token: SecretStr | None) -> None:
        self.url = url.rstrip("/")
        self._origin = urlsplit(self.url)[:2]
        self._token = token
        self._failed_at = float("-inf")

    def with_token(self, token: SecretStr) -> "Upstream":
        """Return the same hub, asked by somebody else."""
        return Upstream(self.url, token)

    @property
    def is_resting(self) -> bool:
        """Whether it did not answer just now."""
        return time.monotonic() - self._failed_at < REST_SECONDS

    @cached_property
    def _client(self) -> httpx.Client:
        """Made when it is first needed: most control planes never ask."""
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        return httpx.Client(timeout=timeout, headers={"Accept-Encoding": "identity"})

    def get(self, path: str) -> Reply:
        """GET a document: ``path`` with its query, from the hub's root."""
        return self._ask("GET", path)

    def head(self, path: str) -> Reply:
        """HEAD a file. A redirect to another host, where the bytes lie, is not followed."""
        return self._ask("HEAD", path)

    @contextmanager
    def stream(self, path: str, offset: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """GET a file from byte ``offset``; gives where the bytes begin (0 if ranges are ignored).

        The bytes may lie on another host: httpx leaves the token behind on the way there.
        """
        headers = self._headers() | ({"Range": f"bytes={offset}-"} if offset else {})
        url = urljoin(self.url + "/", path.lstrip("/"))
        with (
            self._connected(),
            self._client.stream("GET", url, headers=headers, follow_redirects=True) as answer,
        ):
            if answer.status_code >= 400:
                raise self._refusal(answer)
            sent = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
            yield int(sent[1]) if sent else 0, answer.iter_bytes()

    def _ask(self, method: str, path: str) -> Reply:
        url = urljoin(self.url + "/", path.lstrip("/"))
        with self._connected():
            for _ in range(_MAX_REDIRECTS):
                with self._client.stream(method, url, headers=self._headers()) as answer:
                    target = urljoin(url, answer.headers.get("location", ""))
                    if not (answer.is_redirect and urlsplit(target)[:2] == self._origin):
                        if answer.status_code >= 400:
                            raise self._refusal(answer)
                        return Reply(url, dict(answer.headers), _limited(answer, url))
                url = target
        raise UpstreamSpoilt(f"{self.url}{path} is redirected more than {_MAX_REDIRECTS} times.")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            self._failed_at = time.monotonic()
            raise self._away(type(error).__name__) from error
        self._failed_at = float("-inf")

    def _headers(self) -> dict[str, str]:
        if self._token is None:
            return {}
        return {"Authorization": f"Bearer {self._token.get_secret_value()}"}

    def _away(self, why: str) -> UpstreamAway:
        return UpstreamAway(
            f"{self.url} does not answer ({why}), and this is not kept here.",
            hint="Try again when it is back, or take what is in the team's store.",
        )

    def _refusal(self, answer: httpx.Response) -> EspalierError:
        status = answer.status_code
        if status >= 500 or status == 429:
            self._failed_at = time.monotonic()
            return self._away(f"HTTP {status}")
        name = answer.headers.get("X-Error-Code", "")
        said = answer.headers.get("X-Error-Message") or f"HTTP {status}"
        hint = None
        if status in (401, 403):
            name = name or "RepoNotFound"
        if status == 403 or name == "RepoNotFound":
            hint = (
                "If the repository is gated or private, fetch it with your own token of that hub"
                " (`espalier model prefetch ORG/NAME --with-token`), or have an admin set"
                " ESPALIER_UPSTREAM_TOKEN."
            )
        status = 404 if status == 401 else status
        return UpstreamRefusal(status, name or "EntryNotFound", f"{self.url}: {said}", hint)


def _limited(answer: httpx.Response, url: str) -> bytes:
    """Read a document, unpacked and however it is packed, up to MAX_DOCUMENT."""
    found = bytearray()
    for chunk in answer.iter_bytes():
        found += chunk
        if len(found) > MAX_DOCUMENT:
            raise UpstreamSpoilt(
                f"{url} is more than {MAX_DOCUMENT >> 20} MiB: no document of a hub is."
            )
    return bytes(found)
