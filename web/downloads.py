"""A file's bytes as an answer: Range, ETag, and a file name that cannot be anything else."""

from collections.abc import Callable, Iterator
from urllib.parse import quote

from flask import Response, request
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.http import is_resource_modified

from web.services import services

#: Yields the bytes from ``start`` to ``stop``.
OpenRange = Callable[[int, int], Iterator[bytes]]


def send_blob(
    sha256: str, size: int, name: str | None = None, *, etag: str | None = None
) -> Response:
    """Return the blob, or the one range of it that was asked for, as a download.

    ``name`` is the file's name for a browser. The sha256 is the ETag, so that a range of another
    version is never mixed in; a protocol that knows the bytes by another digest gives that as
    ``etag``. Raises NotFound, Unavailable.
    """

    def opened(start: int, stop: int) -> Iterator[bytes]:
        return services().blobs.open(sha256, start, stop - start)

    return send_range(opened, size, etag or sha256, name)


def send_range(opened: OpenRange | None, size: int, digest: str, name: str | None) -> Response:
    """Return what ``opened`` yields of ``size`` bytes known as ``digest``, whole or a range."""
    etag = f'"{digest}"'
    if not is_resource_modified(request.environ, etag=etag):
        return _headed(Response(status=304), etag, None)
    start, stop = _range(size, etag) or (0, size)
    partial = (start, stop) != (0, size)
    body: Iterator[bytes] = iter(())
    if opened and request.method != "HEAD" and stop > start:
        body = opened(start, stop)
    response = _headed(Response(body, status=206 if partial else 200), etag, name)
    response.content_length = stop - start
    if partial:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return response


def _range(size: int, etag: str) -> tuple[int, int] | None:
    """Return the one range asked for, if it counts. Raises RequestedRangeNotSatisfiable."""
    wanted = request.range
    if wanted is None or wanted.units != "bytes" or len(wanted.ranges) != 1:
        return None
    condition = request.headers.get("If-Range")
    if condition is not None and condition != etag:
        return None
    found = wanted.range_for_length(size)
    if found is None or found[1] is None:
        raise RequestedRangeNotSatisfiable(length=size)
    return found[0], found[1]


def _headed(response: Response, etag: str, name: str | None) -> Response:
    headers = response.headers
    headers["ETag"] = etag
    headers["Accept-Ranges"] = "bytes"
    headers["Content-Type"] = "application/octet-stream"
    headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    if name is not None:
        plain = "".join(
            c if c.isascii() and c.isprintable() and c not in '"\\%;' else "_" for c in name
        )
        headers["Content-Disposition"] = (
            f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
        )
    return response
