"""What clients send: JSON objects, looked into with care."""

import json
from typing import Any

from flask import request

from espalier.errors import InvalidInput
from web.routes import Malformed, refuse_unstorable


def json_body() -> dict[str, Any]:
    """Return the request's body, an object. Raises Malformed, InvalidInput."""
    return parse_object(request.get_data(cache=False) or b"{}", "The request's body")


def parse_object(data: bytes, what: str, long: tuple[str, str] | None = None) -> dict[str, Any]:
    """Return the JSON object in ``data``, whose strings databases can hold.

    ``long`` is where a text may be that is no database's: megabytes are not looked through.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise Malformed(f"{what} must be a JSON object.")
    refuse_unstorable(_without(found, long) if long else found)
    return found


def _without(found: dict[str, Any], place: tuple[str, str]) -> dict[str, Any]:
    outer, inner = place
    held = found.get(outer)
    if not isinstance(held, dict):
        return found
    return {**found, outer: {key: value for key, value in held.items() if key != inner}}


def text(item: dict[str, Any], key: str) -> str:
    """Return a string of an object. Raises InvalidInput."""
    found = item.get(key)
    if not isinstance(found, str):
        raise InvalidInput(
            f"{key} must be a text (got {found!r:.80}).", errors=[{"loc": [key], "msg": "a text"}]
        )
    return found


def items(body: dict[str, Any], key: str, most: int) -> list[dict[str, Any]]:
    """Return a list of objects, of at most ``most``. Raises InvalidInput."""
    found = body.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InvalidInput(f"{key} must be a list of objects.")
    if len(found) > most:
        raise InvalidInput(f"{key} has {len(found)} entries; {most} are the most.")
    return found
