"""Sizes as mlx-lm's flags take them: bytes, or a number with M, MB, G or GB."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS = {"": 1, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(given: Any) -> Any:
    """Return the bytes that a text means (``2GB`` is 2,000,000,000); other types as they are."""
    if not isinstance(given, str):
        return given
    match = _SIZE.fullmatch(given.strip())
    unit = match and _UNITS.get(match[2].upper())
    if not match or not unit:
        raise ValueError(f"{given!r} is not a size: write bytes, 512MB or 2GB")
    return round(float(match[1]) * unit)


Size = Annotated[int, BeforeValidator(parse_size)]
