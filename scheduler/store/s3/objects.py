"""Objects of a bucket: put, read from anywhere, listed, deleted."""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from botocore.exceptions import BotoCoreError

from espalier.errors import NotFound, Unavailable
from scheduler.store.base import CHUNK, Stored
from scheduler.store.s3.client import Bucket, PastTheEnd

#: Times that a download goes on after a cut, as long as each brought some bytes.
READ_TRIES = 3
#: Seconds that a presigned URL can be used: a slow download of a large file begins within.
LINK_SECONDS = 3600
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")


class Objects(Bucket):
    """What is done with whole objects."""

    def put(self, key: str, data: bytes) -> None:
        with self.calling():
            self.client.put_object(**self.at(key), Body=data, **self.encryption)

    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        body, size = self._get(key, start, length)
        return self._read(key, start, size, body)

    def _get(self, key: str, start: int, length: int | None) -> tuple[Iterator[bytes], int]:
        """Return the bytes asked for and how many they will be, whatever the server sends."""
        if length == 0:
            return iter(()), 0
        last = "" if length is None else start + length - 1
        wanted: Any = {"Range": f"bytes={start}-{last}"} if start or length is not None else {}
        try:
            with self.calling():
                answer = self.client.get_object(**self.at(key), **wanted)
        except PastTheEnd:
            return iter(()), 0
        sent = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
        first, end = (int(sent[1]), int(sent[2]) + 1) if sent else (0, answer["ContentLength"])
        if first > start:
            raise Unavailable(f"{self.place} sent bytes from {first} where {start} was asked for.")
        size = max(0, end - start)
        if length is not None:
            size = min(size, length)
        return _slice(answer["Body"].iter_chunks(CHUNK), start - first, size), size

    def _read(self, key: str, start: int, size: int, body: Iterator[bytes]) -> Iterator[bytes]:
        """Yield ``size`` bytes; after a cut, ask for the rest."""
        done, before, tries = 0, 0, READ_TRIES
        while True:
            with suppress(BotoCoreError):
                for chunk in body:
                    done += len(chunk)
                    yield chunk
            if done == size:
                return
            tries = tries - 1 if done == before else READ_TRIES - 1
            if not tries:
                raise Unavailable(f"{self.place} ended a download after {done} of {size} bytes.")
            before = done
            body, _ = self._get(key, start + done, size - done)

    def size(self, key: str) -> int | None:
        try:
            with self.calling():
                return self.client.head_object(**self.at(key))["ContentLength"]
        except NotFound:
            return None

    def delete(self, key: str) -> None:
        with suppress(NotFound), self.calling():
            self.client.delete_object(**self.at(key))

    def list(self, prefix: str) -> Iterator[Stored]:
        pages = self.client.get_paginator("list_objects_v2")
        with self.calling():
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for item in page.get("Contents", []):
                    key = self.key_of(item["Key"])
                    yield Stored(key, item["Size"], item["LastModified"])

    def presign(self, key: str, name: str | None = None) -> str:
        """Return a URL that GETs the object without a key, for LINK_SECONDS."""
        shown = {"ResponseContentType": "application/octet-stream"}
        if name is not None:
            shown["ResponseContentDisposition"] = (
                f"attachment; filename*=UTF-8''{quote(name, safe='')}"
            )
        return self.client.generate_presigned_url(
            "get_object", Params={**self.at(key), **shown}, ExpiresIn=LINK_SECONDS
        )


def _slice(data: Iterator[bytes], skip: int, size: int) -> Iterator[bytes]:
    """Yield ``size`` bytes of ``data`` after the first ``skip``, fewer when it ends before."""
    for chunk in data:
        rest = chunk[skip : skip + size]
        skip = max(0, skip - len(chunk))
        size -= len(rest)
        if rest:
            yield rest
        if not size:
            return
