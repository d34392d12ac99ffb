"""Cards: the front matter above a README.md, as plain JSON. Pure."""

import re
from datetime import date
from typing import Any

from espalier.errors import InvalidInput
from espalier.yamlfile import parse_yaml

#: Characters of a front matter, and values in it; a list that refers to itself is none of that.
MAX_MATTER, MAX_VALUES = 64 << 10, 20_000
#: Bytes of a README that are read for it.
MAX_READ = 4 * MAX_MATTER
_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)


def front_matter(text: str) -> str | None:
    """Return the YAML between a README's first two lines of ``---``; None where there is none."""
    found = _MATTER.match(text)
    return found[1] if found else None


def read_card(text: str) -> dict[str, Any]:
    """Return a README's front matter as JSON can say it; {} where there is none.

    Raises InvalidInput with line and column for what is no YAML, or is too much.
    """
    matter = front_matter(text)
    if matter is None:
        return {}
    if len(matter) > MAX_MATTER:
        raise InvalidInput(f"A card's metadata has at most {MAX_MATTER} characters.")
    try:
        found = parse_yaml(matter, "The card's metadata")
        return {key: value for key, value in _Plain().of(found).items() if value is not None}
    except RecursionError as error:
        raise InvalidInput("The card's metadata is nested too deeply.") from error


class _Plain:
    """Copies values into plain JSON, of which there may be so many."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def of(self, value: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise InvalidInput(f"The card's metadata has more than {MAX_VALUES} values.")
        if isinstance(value, dict):
            return {str(key): self.of(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set):
            return [self.of(item) for item in value]
        if isinstance(value, float) and not -1e308 < value < 1e308:
            return str(value)
        if isinstance(value, date):
            return value.isoformat()
        return value if isinstance(value, bool | int | float | str | None) else str(value)
