"""What was wrong in a form, by field: it is said beside what was typed."""

from espalier.errors import EspalierError

#: Field → sentence.
Wrong = dict[str, str]


def wrong_fields(error: EspalierError, default: str = "") -> Wrong:
    """Return what the error says of each field; a fault of none in particular is ``default``'s."""
    found = {str(fault["loc"][-1]): str(fault["msg"]) for fault in error.errors if fault["loc"]}
    whole = " ".join(filter(None, (error.detail, error.hint)))
    return found if found and default not in found else {**found, default: whole}
