"""Every refusal a user can meet, each with its HTTP status and its machine-readable form.

The body follows RFC 9457 (problem details): ``type, title, status, detail, errors[{loc, msg}]``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class EspalierError(Exception):
    """Something was asked for that cannot be done; the text says what, and what to do next."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    #: Seconds after which the server says the request may be sent again (``Retry-After``).
    retry_after: float | None = None

    def __init__(
        self,
        detail: str,
        *,
        hint: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.errors = [dict(e) for e in errors]

    def problem(self) -> dict[str, Any]:
        """Return the RFC 9457 document; ``errors`` locates each fault (``loc`` is a path)."""
        body: dict[str, Any] = {
            "type": f"urn:espalier:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "errors": self.errors,
        }
        if self.hint:
            body["hint"] = self.hint
        return body


class InvalidInput(EspalierError):
    """The request is understood and wrong; ``errors`` names each field, value and limit."""

    status, code, title = 422, "invalid_input", "Invalid input"


class Unauthorized(EspalierError):
    """No token, or one that is unknown, expired or revoked."""

    status, code, title = 401, "unauthorized", "Not signed in"


class Forbidden(EspalierError):
    """Signed in, and still not allowed."""

    status, code, title = 403, "forbidden", "Not allowed"


class NotFound(EspalierError):
    """What was named does not exist; ``hint`` carries the nearest names."""

    status, code, title = 404, "not_found", "Not found"


class Conflict(EspalierError):
    """The thing is no longer in the state this request needs."""

    status, code, title = 409, "conflict", "Conflict"


class LeaseLost(Conflict):
    """The attempt is not this worker's any more: it must stop and can publish nothing."""

    code, title = "lease_lost", "Lease lost"


class GateRefused(Conflict):
    """What an alias asks of a version is missing, or not good enough; the text says by how much."""

    code, title = "gate_refused", "Gate refused"


class TooLarge(EspalierError):
    """An upload above the limit."""

    status, code, title = 413, "too_large", "Too large"


class TooMany(EspalierError):
    """Asked too often; ``retry_after`` says when to come again."""

    status, code, title = 429, "too_many", "Too many requests"


class Unavailable(EspalierError):
    """The control plane, its database or its store is away; the same request may succeed later."""

    status, code, title = 503, "unavailable", "Unavailable"


class StorageFull(Unavailable):
    """The control plane's disk has no room for this; it may succeed once there is some."""

    status, code, title = 507, "storage_full", "Insufficient storage"


class QuotaExceeded(EspalierError):
    """A project's quota has no room for this. It is for a person to act: trying again is no use."""

    status, code, title = 507, "quota_exceeded", "Quota exceeded"


BY_CODE: dict[str, type[EspalierError]] = {
    cls.code: cls
    for cls in (
        InvalidInput,
        Unauthorized,
        Forbidden,
        NotFound,
        Conflict,
        LeaseLost,
        GateRefused,
        TooLarge,
        TooMany,
        Unavailable,
        StorageFull,
        QuotaExceeded,
        EspalierError,
    )
}
