"""Read models: plain dicts, exactly the JSON of pages and APIs. Nothing here writes.

Times are ISO 8601 UTC with ``Z``, sizes bytes.
"""

from datetime import UTC, datetime
from typing import Any

#: One JSON object of an answer.
Document = dict[str, Any]


def stamp(moment: datetime | None) -> str | None:
    """Return ``2026-11-20T16:42:14.123Z``."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
