"""The HTTP client under the CLI, the SDK and the worker.

A refusal comes back as the same exception the server raised (espalier.errors), so that callers
never look at status codes. Requests that may safely be sent twice are sent again, with backoff,
while the control plane is away; all others are tried once.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import urllib3

import espalier
from espalier.bodies import Bodies, Body
from espalier.errors import (
    BY_CODE,
    Conflict,
    EspalierError,
    Forbidden,
    InvalidInput,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)

#: Seconds: to connect, and between two bytes of an answer.
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 60.0
#: Seconds before the second, third, … try; the sum is how long a short outage may last.
BACKOFF = (0.2, 0.5, 1.0, 2.0, 4.0)
#: Seconds a server's Retry-After is obeyed for, at most.
MAX_RETRY_AFTER = 10.0

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_AWAY = frozenset({429, 502, 503, 504, 507})
_BY_STATUS: dict[int, type[EspalierError]] = {
    400: InvalidInput,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidInput,
}

T = TypeVar("T")


class Client:
    """One control plane, one token. Safe to share between threads; close it when done."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        backoff: Iterable[float] = BACKOFF,
        read_timeout: float = READ_TIMEOUT,
        transport: httpx.BaseTransport | None = None,
        direct: bool = False,
    ) -> None:
        """``direct``: through no proxy, as to a machine next door."""
        self.url = _checked(url)
        direct = direct or _is_loopback(self.url)
        timeout = httpx.Timeout(read_timeout, connect=CONNECT_TIMEOUT)
        self._backoff = tuple(backoff)
        headers = {"User-Agent": f"espalier/{espalier.__version__}", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
            # A company's proxy has no business between a Mac and itself.
            trust_env=not direct,
            transport=transport,
        )
        self._bodies = None if transport else Bodies(self.url, headers, timeout, direct)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
        if self._bodies:
            self._bodies.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON of ``path``; parameters that are None are left out."""
        return _body(self.send("GET", path, params=params))

    def post(self, path: str, body: Any = None, *, idempotent: bool = False) -> Any:
        """POST ``body`` as JSON and return the answer's JSON, or None when there is none.

        ``idempotent`` says that the server takes the same request twice.
        """
        return _body(self.send("POST", path, json=body, idempotent=idempotent))

    def patch(self, path: str, body: Any) -> Any:
        """PATCH with the values that shall hold; the same twice changes nothing more."""
        return _body(self.send("PATCH", path, json=body, idempotent=True))

    def delete(self, path: str) -> Any:
        return _body(self.send("DELETE", path))

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: Callable[[], Iterable[bytes]] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> httpx.Response:
        """Send one request, again while the control plane is away if that is safe.

        ``content`` is bytes, or a function that begins the body afresh for each try. Raises the
        server's error as its class, and Unavailable when the tries are used up.
        """
        again = method in _IDEMPOTENT if idempotent is None else idempotent

        def attempt() -> httpx.Response:
            body = content() if callable(content) else content
            response = self._http.request(
                method, path, params=_given(params), json=json, content=body, headers=headers
            )
            raise_for(response)
            return response

        return self.retrying(attempt, again=again)

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout: float | None = None,
    ) -> Iterator[httpx.Response]:
        """GET a response to be read piece by piece, tried once; a cut on the way is Unavailable.

        The caller resumes: by Range for files, by Last-Event-ID for events.
        """
        request = self._http.build_request("GET", path, params=_given(params), headers=headers)
        if read_timeout is not None:
            request.extensions["timeout"]["read"] = read_timeout
        with self._connected():
            response = self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    response.read()
                    raise_for(response)
                yield response
            finally:
                response.close()

    @contextmanager
    def download(self, path: str, headers: Mapping[str, str]) -> Iterator[Body]:
        """GET a large body in large pieces, as it lies there, tried once; a cut is Unavailable."""
        if self._bodies is None:
            plainly = {"Accept-Encoding": "identity", **headers}  # a range of compressed is none
            with self.stream(path, headers=plainly) as response:
                yield Body(response.status_code, response.iter_raw)
            return
        with self._connected(), self._bodies.get(path, headers) as answer:
            if isinstance(answer, httpx.Response):
                raise_for(answer)
                raise Unavailable(f"{path}: the server answered {answer.status_code}.")
            yield answer

    def retrying(self, attempt: Callable[[], T], *, again: bool = True) -> T:
        """Call ``attempt`` until it raises no Unavailable or the tries are used up."""
        for seconds in self._backoff if again else ():
            try:
                with self._connected():
                    return attempt()
            except Unavailable as error:
                jittered = seconds * random.uniform(0.5, 1.0)  # noqa: S311  not a secret
                time.sleep(max(jittered, error.retry_after or 0.0))
        with self._connected():
            return attempt()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except (httpx.RequestError, urllib3.exceptions.HTTPError) as error:
            raise Unavailable(
                f"{self.url} does not answer: {str(error) or type(error).__name__}.",
                hint="Is the control plane up, and is ESPALIER_URL right?",
            ) from error


def raise_for(response: httpx.Response) -> None:
    """Raise what the server refused with; a read body is needed. Success passes."""
    if response.is_success:
        return
    if response.is_redirect:
        raise InvalidInput(
            f"{response.url} sends on to {response.headers.get('location')}: set ESPALIER_URL to"
            " the address the control plane has now."
        )
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    raise _error(response, problem)


def _error(response: httpx.Response, problem: Mapping[str, Any]) -> EspalierError:
    status = response.status_code
    cls = Unavailable if status in _AWAY else _BY_STATUS.get(status, EspalierError)
    cls = BY_CODE.get(str(problem.get("code")), cls)
    request = response.request
    detail = problem.get("detail") or (
        f"{request.method} {request.url.path}: the server answered {status}"
        f" {response.reason_phrase}."
    )
    faults = problem.get("errors")
    error = cls(
        str(detail),
        hint=problem.get("hint"),
        errors=[f for f in faults if isinstance(f, dict)] if isinstance(faults, list) else (),
    )
    wait = response.headers.get("retry-after", "")
    if wait.isdecimal():  # its other form, a date, would need clocks that agree
        error.retry_after = min(float(wait), MAX_RETRY_AFTER)
    return error


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {k: v for k, v in (params or {}).items() if v is not None}


def _body(response: httpx.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise EspalierError(
            f"{response.url} answered with something that is not JSON: is ESPALIER_URL an Espalier?"
        ) from error


def _checked(url: str) -> str:
    """Return ``url`` without its last slash; raise InvalidInput when it is no address."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are none
        sound = False
    if not sound:
        raise InvalidInput(
            f"{url!r} is not the address of a control plane: it begins with http:// or https://.",
            hint="Set ESPALIER_URL, or sign in with `espalier login URL`.",
        )
    return url.rstrip("/")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
