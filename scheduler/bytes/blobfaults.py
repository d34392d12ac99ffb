"""What is said of uploads that cannot go on, and of bytes that are not what was announced."""

from espalier.errors import InvalidInput, NotFound
from scheduler.bytes.blobrows import Digests


def unknown(upload_id: str) -> NotFound:
    return NotFound(
        f"There is no upload {upload_id} to go on with.", hint="Begin the upload again."
    )


def wrong_size(blob: Digests, given: int) -> InvalidInput:
    return InvalidInput(
        f"The bytes with sha256 {blob.sha256} are {blob.size} long, not {given}.",
        errors=[{"loc": ["size"], "msg": f"must be {blob.size}"}],
    )


def wrong_bytes(sha256: str, size: int, found: Digests) -> InvalidInput:
    return InvalidInput(
        f"The {found.size} bytes received have sha256 {found.sha256}; {size} bytes with"
        f" sha256 {sha256} were announced. Nothing of them was kept.",
        hint="The file changed while it was sent, or the line is bad: upload it again.",
        errors=[{"loc": ["sha256"], "msg": f"the bytes received have {found.sha256}"}],
    )
