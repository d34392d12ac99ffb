"""Bodies of large answers, read in large pieces.

httpx parses an answer in pieces of 64 KiB and takes four times the CPU of a plain read from the
socket; urllib3 reads as much as is there. Everything but a blob's bytes goes through httpx.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import urllib3

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Bytes of a refusal that are read.
_REFUSAL = 1 << 20


@dataclass(frozen=True, slots=True)
class Body:
    """An answer that was not refused; ``pieces`` yields its bytes, so many at a time."""

    status: int
    pieces: Callable[[int], Iterator[bytes]]


class Bodies:
    """A pool of connections for GETs. Errors are those of urllib3 (``urllib3.exceptions``)."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout: httpx.Timeout, direct: bool):
        """``direct``: no proxy, whatever the environment says."""
        self._url = url
        self._headers = dict(headers)
        self._timeout = urllib3.Timeout(connect=timeout.connect, read=timeout.read)
        self._pool = _pool(url, direct)

    def close(self) -> None:
        self._pool.clear()

    @contextmanager
    def get(self, path: str, headers: Mapping[str, str]) -> Iterator[Body | httpx.Response]:
        """Yield the body, or the refusal, read. One redirect is followed: to an object store.

        The token goes nowhere else than to the first address.
        """
        response = self._send(self._url + path, {**self._headers, **headers})
        try:
            onward = response.headers.get("Location")
            if response.status in _REDIRECTS and onward and urlsplit(onward).netloc:
                response.close()
                response = self._send(onward, headers)
            if 200 <= response.status < 300:
                yield Body(response.status, lambda size: response.stream(size, False))
            else:
                yield httpx.Response(
                    response.status,
                    headers=dict(response.headers),
                    content=response.read(_REFUSAL, decode_content=False),
                    request=httpx.Request("GET", self._url + path),
                )
        finally:
            response.close()  # one that was read to its end has given its connection back

    def _send(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        return self._pool.request(
            "GET",
            url,
            headers={**headers, "Accept-Encoding": "identity"},
            timeout=self._timeout,
            preload_content=False,
            decode_content=False,
            redirect=False,
            retries=False,
        )


def _pool(url: str, direct: bool) -> urllib3.PoolManager:
    """Return connections that take the way that httpx would: the same proxy and certificates."""
    parts = urlsplit(url)
    context = httpx.create_ssl_context() if parts.scheme == "https" else None
    proxies = {} if direct or proxy_bypass(parts.hostname or "") else getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return urllib3.PoolManager(num_pools=4, maxsize=8, ssl_context=context)
    known = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    login = f"{unquote(known.username)}:{unquote(known.password or '')}" if known.username else None
    return urllib3.ProxyManager(
        f"{known.scheme}://{known.hostname}:{known.port or 80}",
        num_pools=4,
        maxsize=8,
        ssl_context=context,
        proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None,
    )
