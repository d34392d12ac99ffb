"""A file's bytes as an answer: Range, ETag, and a file name that cannot be anything else.

Files of a directory store go from the disk to the network by the kernel, where the server can do
that; those of a bucket straight from there, where settings and the bucket's server allow it.
"""

from collections.abc import Callable, Iterable
from typing import BinaryIO
from urllib.parse import quote

from flask import Response, request
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.http import is_resource_modified

from web.services import services

#: Yields the bytes from ``start`` to ``stop``; a server's own wrapper of a file is sent as it is.
OpenRange = Callable[[int, int], Iterable[bytes]]
#: Bytes that a server reads at a time when it cannot have the kernel do it.
CHUNK = 1 << 20


def send_blob(
    sha256: str,
    size: int,
    name: str | None = None,
    *,
    etag: str | None = None,
    elsewhere: bool = False,
) -> Response:
    """Return the blob, or the one range of it that was asked for, as a download.

    ``name`` is the file's name for a browser. The sha256 is the ETag, so that a range of another
    version is never mixed in; a protocol that knows the bytes by another digest gives that as
    ``etag``. ``elsewhere`` says that the client follows a redirect to the bucket. Raises NotFound,
    Unavailable.
    """
    blobs = services().blobs
    link = blobs.link(sha256, name) if elsewhere and request.method == "GET" and size else None
    if link is not None:
        response = _headed(Response(status=302), f'"{etag or sha256}"', name)
        response.headers["Location"] = link
        return response

    def opened(start: int, stop: int) -> Iterable[bytes]:
        file = blobs.open_file(sha256) if _WRAPPER in request.environ else None
        if file is None:
            return blobs.open(sha256, start, stop - start)
        return _wrapped(file, start)

    return send_range(opened, size, etag or sha256, name)


_WRAPPER = "wsgi.file_wrapper"


def _wrapped(file: BinaryIO, start: int) -> Iterable[bytes]:
    """Return the server's own way to send a file from ``start``; the answer's length ends it."""
    file.seek(start)
    wrapped: Iterable[bytes] = request.environ[_WRAPPER](file, CHUNK)
    return wrapped


def send_range(opened: OpenRange | None, size: int, digest: str, name: str | None) -> Response:
    """Return what ``opened`` yields of ``size`` bytes known as ``digest``, whole or a range."""
    etag = f'"{digest}"'
    if not is_resource_modified(request.environ, etag=etag):
        return _headed(Response(status=304), etag, None)
    start, stop = _range(size, etag) or (0, size)
    partial = (start, stop) != (0, size)
    body: Iterable[bytes] = iter(())
    if opened and request.method != "HEAD" and stop > start:
        body = opened(start, stop)
    # Passed through: a wrapper around the server's own would hide the file from it.
    response = Response(body, status=206 if partial else 200, direct_passthrough=True)
    _headed(response, etag, name)
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
