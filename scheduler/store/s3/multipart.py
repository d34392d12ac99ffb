"""Objects that arrive in parts, and objects that move: S3 has no rename."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from tempfile import TemporaryFile
from typing import IO

from boto3.s3.transfer import TransferConfig

from espalier.errors import NotFound, StorageFull, Unavailable
from scheduler.store.base import (
    FULL,
    MAX_PARTS,
    STAGING,
    OpenParts,
    Part,
    Readable,
    UploadLost,
    chunks,
)
from scheduler.store.s3.objects import Objects

#: From this size on an object is copied in parts: S3's own limit is 5 GiB, and a slow server's
#: answer to one large copy comes after the timeout.
COPY_LIMIT = 256 << 20


class Parts(Objects):
    """What is done in parts. ``copy_limit`` in bytes."""

    copy_limit = COPY_LIMIT

    def begin(self, key: str) -> str:
        with self.calling():
            return self.client.create_multipart_upload(**self.at(key), **self.encryption)[
                "UploadId"
            ]

    def put_part(self, key: str, handle: str, part: Part, source: Readable) -> str:
        # A signature needs the body's digest before the body, and a retry needs it again: it
        # waits on disk, not in memory.
        with TemporaryFile() as body:
            _spool(chunks(source, part.size), body)
            return self._send_part(key, handle, part, body)

    def _send_part(self, key: str, handle: str, part: Part, body: IO[bytes]) -> str:
        with self.calling():
            answer = self.client.upload_part(
                **self.at(key),
                UploadId=handle,
                PartNumber=part.number,
                Body=body,
                ContentLength=part.size,
            )
        return answer["ETag"]

    def assemble(self, key: str, handle: str, parts: Sequence[Part]) -> None:
        try:
            with self.calling():
                self.client.complete_multipart_upload(
                    **self.at(key),
                    UploadId=handle,
                    MultipartUpload={
                        "Parts": [{"PartNumber": part.number, "ETag": part.tag} for part in parts]
                    },
                )
        except (UploadLost, NotFound):
            if self.size(key) != sum(part.size for part in parts):
                raise UploadLost(f"{self.place} has lost an upload's parts.") from None

    def abort(self, key: str, handle: str) -> None:
        with suppress(UploadLost, NotFound), self.calling():
            self.client.abort_multipart_upload(**self.at(key), UploadId=handle)

    def uploads(self) -> Iterator[OpenParts]:
        pages = self.client.get_paginator("list_multipart_uploads")
        with self.calling():
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + STAGING):
                for item in page.get("Uploads", []):
                    key = self.key_of(item["Key"])
                    yield OpenParts(key, item["UploadId"], item["Initiated"])

    def move(self, source: str, target: str) -> None:
        size = self.size(source)
        if size is None:
            raise NotFound(f"{source} is not in the store.")
        if size < self.copy_limit:
            with self.calling():
                self.client.copy_object(
                    **self.at(target), CopySource=self.at(source), **self.encryption
                )
        elif not self._copy_in_parts(source, target):
            self._copy_through(source, target, size)
        if self.size(target) != size:
            raise Unavailable(f"{self.place} did not copy the whole of an object.")
        self.delete(source)

    def _copy_in_parts(self, source: str, target: str) -> bool:
        """Say whether the server did it; rclone knows no copied parts."""
        try:
            with self.calling():
                self.client.copy(
                    self.at(source),
                    **self.at(target),
                    ExtraArgs=self.encryption,
                    Config=self._copies(),
                )
        except (Unavailable, UploadLost, KeyError):  # rclone's answer lacks the part's ETag
            return False
        return True

    def _copies(self) -> TransferConfig:
        return TransferConfig(
            multipart_threshold=self.copy_limit,
            multipart_chunksize=min(self.copy_limit, 128 << 20),
            max_concurrency=4,
            preferred_transfer_client="classic",
        )

    def _copy_through(self, source: str, target: str, size: int) -> None:
        """Copy by way of this machine."""
        handle, parts = self.begin(target), []
        step = max(min(self.copy_limit, 64 << 20), -(-size // MAX_PARTS))
        for number, start in enumerate(range(0, size, step), 1):
            part = Part(number, start, min(step, size - start))
            with TemporaryFile() as body:
                _spool(self.open(source, part.start, part.size), body)
                parts.append(replace(part, tag=self._send_part(target, handle, part, body)))
        self.assemble(target, handle, parts)


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
