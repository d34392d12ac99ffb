"""What a server can do, found out by asking it: S3 is a family, and its members differ silently."""

from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import httpx
from botocore.exceptions import ClientError

from espalier.errors import NotFound, Unavailable
from espalier.ids import new_id
from scheduler.store.base import STAGING, UploadLost
from scheduler.store.s3.multipart import Parts

_DATA = b"espalier"
#: Seconds for an answer to a presigned GET.
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Findings:
    """What the server cannot do and what follows, in words; do presigned ``links`` work?"""

    limits: tuple[str, ...]
    links: bool


def round_trip(store: Parts) -> None:
    """Write, read, list and delete a small object; make the bucket where there is none.

    Raises Unavailable when the server cannot keep blobs, or keeps them unencrypted although
    encryption is set.
    """
    _find_bucket(store)
    key = _fresh()
    store.put(key, _DATA)
    try:
        if store.size(key) != len(_DATA) or b"".join(store.open(key)) != _DATA:
            raise Unavailable(f"{store.place}: an object read back is not what was written.")
        if b"".join(store.open(key, 2, 3)) != _DATA[2:5]:
            raise Unavailable(f"{store.place}: a part of an object read back is another part.")
        if [stored.key for stored in store.list(key)] != [key]:
            raise Unavailable(f"{store.place}: an object that was written is not listed.")
        _check_encryption(store, key)
    finally:
        store.delete(key)
    if store.size(key) is not None:
        raise Unavailable(f"{store.place}: an object that was deleted is still there.")


def examine(store: Parts, *, presigned: bool) -> Findings:
    """Find out what the server leaves out. ``presigned`` asks for links as well."""
    key = _fresh()
    store.put(key, _DATA)
    try:
        limits = [*_ranges(store, key), *_checksums(store, key), *_conditions(store, key)]
        limits += _uploads(store)
        fault = _fault_of_links(store, key) if presigned else None
    finally:
        store.delete(key)
    if fault:
        limits.append(f"{fault}: ESPALIER_S3_PRESIGNED has no effect")
    return Findings(tuple(limits), presigned and fault is None)


def _fresh() -> str:
    return f"{STAGING}probe-{new_id()}"


def _find_bucket(store: Parts) -> None:
    try:
        with store.calling():
            store.client.head_bucket(Bucket=store.bucket)
    except NotFound:
        region = store.client.meta.region_name
        where: Any = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        with store.calling():
            store.client.create_bucket(
                Bucket=store.bucket, **({} if region == "us-east-1" else where)
            )


def _check_encryption(store: Parts, key: str) -> None:
    wanted = store.encryption.get("ServerSideEncryption")
    if wanted is None:
        return
    with store.calling():
        answer: dict[str, Any] = {**store.client.head_object(**store.at(key))}
    found = answer.get("ServerSideEncryption")
    if found != wanted:
        raise Unavailable(
            f"{store.place}: ESPALIER_S3_ENCRYPTION is {wanted}, and the server says"
            f" {found or 'nothing'} of an object that was written so.",
            hint="Take a server that encrypts, or unset ESPALIER_S3_ENCRYPTION.",
        )


def _ranges(store: Parts, key: str) -> Iterator[str]:
    with store.calling():
        answer = store.client.get_object(**store.at(key), Range="bytes=2-4")
        answer["Body"].close()
    if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
        yield "answers a Range with status 200: its answers are cut to what was asked for"


def _checksums(store: Parts, key: str) -> Iterator[str]:
    wrong = b64encode(sha256(b"other bytes").digest()).decode()
    try:
        store.client.put_object(
            **store.at(key), Body=_DATA, ChecksumSHA256=wrong, **store.encryption
        )
    except ClientError:
        return
    yield (
        "takes an object whose x-amz-checksum-sha256 is wrong: damage on the way is seen only"
        " when an upload is verified"
    )


def _conditions(store: Parts, key: str) -> Iterator[str]:
    try:
        store.client.put_object(**store.at(key), Body=_DATA, IfNoneMatch="*", **store.encryption)
    except ClientError:
        return
    yield "ignores conditional writes: nothing here relies on them"


def _uploads(store: Parts) -> Iterator[str]:
    key = _fresh()
    handle = store.begin(key)
    try:
        if handle not in [parts.handle for parts in store.uploads()]:
            yield "does not list multipart uploads: what a crash leaves of them stays"
    except (Unavailable, UploadLost):
        yield "cannot list multipart uploads: what a crash leaves of them stays"
    finally:
        with suppress(Unavailable):
            store.abort(key, handle)


def _fault_of_links(store: Parts, key: str) -> str | None:
    """Say what is wrong with presigned URLs, as a client would find it."""
    try:
        answer = httpx.get(
            store.presign(key, "probe"), headers={"Range": "bytes=2-4"}, timeout=_TIMEOUT
        )
    except httpx.HTTPError as error:
        return f"does not answer a presigned request ({type(error).__name__})"
    if answer.status_code == 206 and answer.content == _DATA[2:5]:
        return None
    if answer.status_code == 200:
        return "answers a Range of a presigned URL with status 200"
    return f"answers a presigned request with status {answer.status_code}"
