"""Objects in an S3 bucket, on any server that speaks S3's basics.

Nothing rests on what servers differ in: no conditional writes, no ETags as digests, no metadata,
no trust in a Range that was asked for. Two servers are tested against, moto for semantics and
``rclone serve s3`` for signatures and odd answers. ``client`` is the bucket, ``objects`` and
``multipart`` are what is done with it, ``probe`` finds out what this server cannot do.
"""

from threading import Lock
from typing import TYPE_CHECKING

from espalier.errors import Unavailable
from espalier.settings import Settings
from scheduler.store.s3.client import encryption_of, make_client
from scheduler.store.s3.multipart import COPY_LIMIT, Parts
from scheduler.store.s3.probe import Findings, examine, round_trip

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["COPY_LIMIT", "S3", "connect"]


class S3(Parts):
    """The driver for ``s3://bucket/prefix`` stores.

    ``presigned`` wishes for downloads straight from the server; they happen when the probe has
    seen that its links give ranges as they should.
    """

    def __init__(
        self,
        client: "S3Client",
        bucket: str,
        prefix: str,
        encryption: dict[str, str],
        *,
        copy_limit: int = COPY_LIMIT,
        presigned: bool = False,
    ) -> None:
        super().__init__(client, bucket, prefix, encryption)
        self.copy_limit = copy_limit
        self._presigned = presigned
        self._findings: Findings | None = None
        self._lock = Lock()

    def probe(self) -> tuple[str, ...]:
        round_trip(self)
        return self._found().limits

    def limits(self) -> tuple[str, ...]:
        return self._findings.limits if self._findings else ()

    def link(self, key: str, name: str | None = None) -> str | None:
        if not self._presigned:
            return None
        try:
            return self.presign(key, name) if self._found().links else None
        except Unavailable:  # whoever asked goes the other way, and hears of it there
            return None

    def room(self) -> int | None:
        return None

    def _found(self) -> Findings:
        """Return what the server can do, asked once: it costs a dozen requests."""
        with self._lock:
            if self._findings is None:
                self._findings = examine(self, presigned=self._presigned)
            return self._findings


def connect(settings: Settings, bucket: str, prefix: str, *, copy_limit: int = COPY_LIMIT) -> S3:
    """Return the driver; nothing is reached yet. Raises InvalidInput for unusable settings."""
    return S3(
        make_client(settings),
        bucket,
        prefix,
        encryption_of(settings.s3_encryption),
        copy_limit=copy_limit,
        presigned=settings.s3_presigned,
    )
