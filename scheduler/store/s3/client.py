"""One bucket: how it is reached, how its objects are named, what its refusals mean."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from espalier.errors import InvalidInput, NotFound, StorageFull, Unavailable
from espalier.settings import Settings
from scheduler.store.base import UploadLost

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
#: NotImplemented is rclone's answer to other bytes for a part that it has passed on already.
_LOST = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "NotImplemented"})
_FULL = frozenset({"507", "InsufficientStorage", "XMinioStorageFull", "QuotaExceeded"})
_ENCRYPTION = re.compile(r"(AES256|aws:kms|aws:kms:dsse)(?::(.+))?")


class PastTheEnd(Exception):
    """A range that begins where the object has ended."""


class Bucket:
    """A bucket and a prefix in it. ``encryption`` are the parameters of what writes an object."""

    def __init__(
        self, client: "S3Client", bucket: str, prefix: str, encryption: dict[str, str]
    ) -> None:
        self.client = client
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.encryption: Any = encryption

    @property
    def place(self) -> str:
        endpoint = urlsplit(self.client.meta.endpoint_url)
        port = f":{endpoint.port}" if endpoint.port else ""
        return f"{endpoint.scheme}://{endpoint.hostname}{port}, bucket {self.bucket}"

    def at(self, key: str) -> Any:
        """Return the parameters that name the object."""
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def key_of(self, name: str) -> str:
        """Return the key of an object as the server names it."""
        return name.removeprefix(self.prefix)

    @contextmanager
    def calling(self) -> Iterator[None]:
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
                raise PastTheEnd from error
            kind = StorageFull if code in _FULL else Unavailable
            raise kind(f"{self.place}: {error}", hint=_HINTS.get(code)) from error
        except NoCredentialsError as error:
            raise Unavailable(f"{self.place}: {error}", hint=_KEYS) from error
        except BotoCoreError as error:
            raise Unavailable(
                f"{self.place}: {error}",
                hint="Check ESPALIER_S3_ENDPOINT, and that the server is up.",
            ) from error


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


def make_client(settings: Settings) -> "S3Client":
    """Return boto3's client; keys come from ``settings``, else from boto3's own chain.

    Raises InvalidInput for an endpoint that is no URL.
    """
    access, secret = settings.s3_access_key, settings.s3_secret_key
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if settings.s3_path_style else "virtual"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "max_attempts": 4},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
    )
    try:
        return boto3.session.Session().client(
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


def encryption_of(text: str | None) -> dict[str, str]:
    """Return what ``ESPALIER_S3_ENCRYPTION`` means to a request. Raises InvalidInput."""
    if text is None:
        return {}
    found = _ENCRYPTION.fullmatch(text)
    if not found or (found[2] and found[1] == "AES256"):
        raise InvalidInput(
            f"ESPALIER_S3_ENCRYPTION is {text!r}: write AES256, aws:kms or aws:kms:KEY-ID."
        )
    key = {"SSEKMSKeyId": found[2]} if found[2] else {}
    return {"ServerSideEncryption": found[1], **key}
