"""The hub behind the mirror, over HTTP. Its token goes to it and to nobody else."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urljoin, urlsplit

import httpx

from espalier.errors import EspalierError, Unavailable

#: Seconds for a connection, and for the next bytes: clients give up on an answer after ten.
CONNECT_SECONDS, READ_SECONDS = 5.0, 8.0
#: Redirects inside the hub (a repository that was renamed) that are followed.
_MAX_REDIRECTS = 5


class UpstreamAway(Unavailable):
    """The hub behind this one does not answer, and nothing of what was asked for is kept here."""

    status, code, title = 504, "upstream_away", "Upstream hub away"


class UpstreamRefusal(EspalierError):
    """The hub behind this one refused: ``name`` is its own error code, such as GatedRepo."""

    code, title = "upstream_refusal", "Refused upstream"

    def __init__(self, status: int, name: str, detail: str, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.http_status = status
        self.name = name


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer without its connection: header names are lower case."""

    url: str
    headers: Mapping[str, str]
    content: bytes


class Upstream:
    """One hub. Thread-safe. Raises UpstreamAway and UpstreamRefusal."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        self._host = urlsplit(self.url).netloc
        self._token = token

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
        try:
            with self._client.stream("GET", url, headers=headers, follow_redirects=True) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise self._refusal(answer)
                begin = offset if answer.status_code == 206 else 0
                yield begin, answer.iter_bytes()
        except httpx.HTTPError as error:
            raise self._away(error) from error

    def _ask(self, method: str, path: str) -> Reply:
        url = urljoin(self.url + "/", path.lstrip("/"))
        try:
            for _ in range(_MAX_REDIRECTS):
                answer = self._client.request(method, url, headers=self._headers())
                target = urljoin(url, answer.headers.get("location", ""))
                inside = urlsplit(target).netloc == self._host
                if not (answer.is_redirect and inside):
                    break
                url = target
        except httpx.HTTPError as error:
            raise self._away(error) from error
        if answer.status_code >= 400:
            raise self._refusal(answer)
        return Reply(url, dict(answer.headers), answer.content)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _away(self, error: Exception) -> UpstreamAway:
        return UpstreamAway(
            f"{self.url} does not answer ({type(error).__name__}), and this is not kept here.",
            hint="Try again when it is back, or take what is in the team's store.",
        )

    def _refusal(self, answer: httpx.Response) -> EspalierError:
        if answer.status_code >= 500 or answer.status_code == 429:
            return self._away(httpx.HTTPError(f"HTTP {answer.status_code}"))
        name = answer.headers.get("X-Error-Code", "")
        said = answer.headers.get("X-Error-Message") or f"HTTP {answer.status_code}"
        hint = None
        if answer.status_code in (401, 403):
            name = name or "RepoNotFound"
            hint = (
                "If the repository is gated or private, set ESPALIER_UPSTREAM_TOKEN to a token of"
                " that hub which may read it."
            )
        status = 404 if answer.status_code == 401 else answer.status_code
        return UpstreamRefusal(status, name or "EntryNotFound", f"{self.url}: {said}", hint)
