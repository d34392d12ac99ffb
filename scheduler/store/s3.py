"""Objects in an S3 bucket, on any server that speaks S3's basics.

Nothing rests on what servers differ in: no conditional writes, no ETags as digests, no metadata,
no trust in a Range that was asked for. Two servers are tested against, moto for semantics and
``rclone serve s3`` for signatures and odd answers.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from espalier.errors import InvalidInput, NotFound, StorageFull, Unavailable
from espalier.ids import new_id
from espalier.settings import Settings
from scheduler.store.base import (
    CHUNK,
    FULL,
    MAX_PARTS,
    OpenParts,
    Part,
    Readable,
    Stored,
    UploadLost,
    chunks,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: From this size on an object is copied in parts: S3's own limit is 5 GiB, and a slow server's
#: answer to one large copy comes after the timeout.
COPY_LIMIT = 256 << 20
#: Times that a download goes on after a cut, as long as each brought some bytes.
READ_TRIES = 3
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
#: NotImplemented is rclone's answer to other bytes for a part that it has passed on already.
_LOST = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "NotImplemented"})
_FULL = frozenset({"507", "InsufficientStorage", "XMinioStorageFull", "QuotaExceeded"})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")


class S3:
    """The driver for ``s3://bucket/prefix`` stores."""

    def __init__(self, client: "S3Client", bucket: str, prefix: str, copy_limit: int) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._copy_limit = copy_limit
        self._copies = TransferConfig(
            multipart_threshold=copy_limit,
            multipart_chunksize=min(copy_limit, 128 << 20),
            max_concurrency=4,
            preferred_transfer_client="classic",
        )

    @property
    def place(self) -> str:
        endpoint = urlsplit(self._client.meta.endpoint_url)
        port = f":{endpoint.port}" if endpoint.port else ""
        return f"{endpoint.scheme}://{endpoint.hostname}{port}, bucket {self._bucket}"

    # --- Is it usable? --------------------------------------------------------------------

    def probe(self) -> tuple[str, ...]:
        self._find_bucket()
        key, data = f"staging/probe-{new_id()}", b"espalier"
        self.put(key, data)
        try:
            if self.size(key) != len(data) or b"".join(self.open(key)) != data:
                raise Unavailable(f"{self.place}: an object read back is not what was written.")
            if b"".join(self.open(key, 2, 3)) != data[2:5]:
                raise Unavailable(f"{self.place}: a part of an object read back is another part.")
            if [stored.key for stored in self.list(key)] != [key]:
                raise Unavailable(f"{self.place}: an object that was written is not listed.")
            limits = tuple(self._limits(key))
        finally:
            self.delete(key)
        if self.size(key) is not None:
            raise Unavailable(f"{self.place}: an object that was deleted is still there.")
        return limits

    def _limits(self, key: str) -> Iterator[str]:
        with self._calling():
            answer = self._client.get_object(**self._at(key), Range="bytes=2-4")
            answer["Body"].close()
        if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            yield "answers a Range with status 200"
        handle = self.begin(key)
        try:
            if handle not in [parts.handle for parts in self.uploads()]:
                yield "does not list multipart uploads: what a crash leaves of them stays"
        except (Unavailable, UploadLost):
            yield "cannot list multipart uploads: what a crash leaves of them stays"
        finally:
            self.abort(key, handle)

    def _find_bucket(self) -> None:
        try:
            with self._calling():
                self._client.head_bucket(Bucket=self._bucket)
        except NotFound:
            region = self._client.meta.region_name
            where: Any = {"CreateBucketConfiguration": {"LocationConstraint": region}}
            with self._calling():
                self._client.create_bucket(
                    Bucket=self._bucket, **({} if region == "us-east-1" else where)
                )

    # --- Uploads in parts -----------------------------------------------------------------

    def begin(self, key: str) -> str:
        with self._calling():
            return self._client.create_multipart_upload(**self._at(key))["UploadId"]

    def put_part(self, key: str, handle: str, part: Part, source: Readable) -> str:
        # A signature needs the body's digest before the body, and a retry needs it again: it
        # waits on disk, not in memory.
        with TemporaryFile() as body:
            _spool(chunks(source, part.size), body)
            return self._send_part(key, handle, part, body)

    def _send_part(self, key: str, handle: str, part: Part, body: IO[bytes]) -> str:
        with self._calling():
            answer = self._client.upload_part(
                **self._at(key),
                UploadId=handle,
                PartNumber=part.number,
                Body=body,
                ContentLength=part.size,
            )
        return answer["ETag"]

    def assemble(self, key: str, handle: str, parts: Sequence[Part]) -> None:
        try:
            with self._calling():
                self._client.complete_multipart_upload(
                    **self._at(key),
                    UploadId=handle,
                    MultipartUpload={
                        "Parts": [{"PartNumber": part.number, "ETag": part.tag} for part in parts]
                    },
                )
        except (UploadLost, NotFound):
            if self.size(key) != sum(part.size for part in parts):
                raise UploadLost(f"{self.place} has lost an upload's parts.") from None

    def abort(self, key: str, handle: str) -> None:
        with suppress(UploadLost, NotFound), self._calling():
            self._client.abort_multipart_upload(**self._at(key), UploadId=handle)

    def uploads(self) -> Iterator[OpenParts]:
        pages = self._client.get_paginator("list_multipart_uploads")
        with self._calling():
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._prefix}staging/"):
                for item in page.get("Uploads", []):
                    key = item["Key"].removeprefix(self._prefix)
                    yield OpenParts(key, item["UploadId"], item["Initiated"])

    # --- Objects --------------------------------------------------------------------------

    def move(self, source: str, target: str) -> None:
        size = self.size(source)
        if size is None:
            raise NotFound(f"{source} is not in the store.")
        if size < self._copy_limit:
            with self._calling():
                self._client.copy_object(**self._at(target), CopySource=self._at(source))
        elif not self._copy_in_parts(source, target):
            self._copy_through(source, target, size)
        if self.size(target) != size:
            raise Unavailable(f"{self.place} did not copy the whole of an object.")
        self.delete(source)

    def _copy_in_parts(self, source: str, target: str) -> bool:
        """Say whether the server did it; rclone knows no copied parts."""
        try:
            with self._calling():
                self._client.copy(self._at(source), **self._at(target), Config=self._copies)
        except (Unavailable, UploadLost, KeyError):  # rclone's answer lacks the part's ETag
            return False
        return True

    def _copy_through(self, source: str, target: str, size: int) -> None:
        """Copy by way of this machine."""
        handle, parts = self.begin(target), []
        step = max(min(self._copy_limit, 64 << 20), -(-size // MAX_PARTS))
        for number, start in enumerate(range(0, size, step), 1):
            part = Part(number, start, min(step, size - start))
            with TemporaryFile() as body:
                _spool(self.open(source, part.start, part.size), body)
                parts.append(replace(part, tag=self._send_part(target, handle, part, body)))
        self.assemble(target, handle, parts)

    def put(self, key: str, data: bytes) -> None:
        with self._calling():
            self._client.put_object(**self._at(key), Body=data)

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
            with self._calling():
                answer = self._client.get_object(**self._at(key), **wanted)
        except _PastTheEnd:
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
            with self._calling():
                return self._client.head_object(**self._at(key))["ContentLength"]
        except NotFound:
            return None

    def delete(self, key: str) -> None:
        with suppress(NotFound), self._calling():
            self._client.delete_object(**self._at(key))

    def list(self, prefix: str) -> Iterator[Stored]:
        pages = self._client.get_paginator("list_objects_v2")
        with self._calling():
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self._prefix)
                    yield Stored(key, item["Size"], item["LastModified"])

    def room(self) -> int | None:
        return None

    def _at(self, key: str) -> Any:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Say in our words what boto3 raises; keys and signatures are never in its texts."""
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _ABSENT:
                raise NotFound(f"{self.place} has no such object.") from error
            if code in _LOST:
                raise UploadLost(f"{self.place} has lost an upload.") from error
            if code in ("416", "InvalidRange"):
                raise _PastTheEnd from error
            kind = StorageFull if code in _FULL else Unavailable
            raise kind(f"{self.place}: {error}", hint=_HINTS.get(code)) from error
        except NoCredentialsError as error:
            raise Unavailable(f"{self.place}: {error}", hint=_KEYS) from error
        except BotoCoreError as error:
            raise Unavailable(
                f"{self.place}: {error}",
                hint="Check ESPALIER_S3_ENDPOINT, and that the server is up.",
            ) from error


class _PastTheEnd(Exception):
    """A range that begins where the object has ended."""


_KEYS = "Check ESPALIER_S3_ACCESS_KEY and ESPALIER_S3_SECRET_KEY."
_RIGHTS = "The key must be allowed to list the bucket, and to get, put and delete its objects."
_HINTS = {
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "AccessDenied": _RIGHTS,
    "403": f"{_KEYS} {_RIGHTS}",
    "NoSuchBucket": "Create the bucket, or name another in ESPALIER_STORE_URL.",
    "RequestTimeTooSkewed": "This machine's clock and the store's differ: set them by NTP.",
}


def _spool(data: Iterable[bytes], body: IO[bytes]) -> None:
    for chunk in data:
        try:
            body.write(chunk)
        except OSError as error:
            kind = StorageFull if error.errno in FULL else Unavailable
            raise kind(
                f"A part cannot be held in the temporary folder: {error.strerror}.",
                hint="Make room there, or point TMPDIR elsewhere.",
            ) from error
    body.seek(0)


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


def connect(settings: Settings, bucket: str, prefix: str, *, copy_limit: int = COPY_LIMIT) -> S3:
    """Return the driver; keys come from ``settings``, else from boto3's own chain."""
    access, secret = settings.s3_access_key, settings.s3_secret_key
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "max_attempts": 4},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
    )
    try:
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=access.get_secret_value() if access else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=config,
        )
    except ValueError as error:
        raise InvalidInput(
            f"ESPALIER_S3_ENDPOINT is {settings.s3_endpoint!r}: write https://host:port."
        ) from error
    return S3(client, bucket, prefix, copy_limit)
