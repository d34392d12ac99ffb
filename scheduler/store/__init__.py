"""Where blobs lie: one small driver protocol, a directory and S3 behind it."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from espalier.errors import InvalidInput
from espalier.settings import Settings
from scheduler.store.base import Driver
from scheduler.store.directory import Directory

__all__ = ["Driver", "open_driver"]


def open_driver(settings: Settings) -> Driver:
    """Return the driver for ``settings.blob_url``; nothing is reached yet: see Driver.probe.

    Raises InvalidInput for a URL that is neither ``file:///folder`` nor ``s3://bucket/prefix``.
    """
    url = urlsplit(settings.blob_url)
    if url.scheme == "file" and url.netloc in ("", "localhost") and url.path.startswith("/"):
        return Directory(Path(unquote(url.path)))
    if url.scheme == "s3" and url.netloc:
        from scheduler.store import s3  # boto3 takes 20 MiB: who has no bucket does not pay it

        return s3.connect(settings, url.netloc, url.path)
    raise InvalidInput(
        f"ESPALIER_STORE_URL is {settings.blob_url!r}: write file:///folder or s3://bucket/prefix."
    )
