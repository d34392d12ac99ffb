"""One validation for form, API, CLI and YAML, and its faults as sentences."""

from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from espalier.errors import InvalidInput
from espalier.specs.foreign import advice
from espalier.specs.requests import SPECS

T = TypeVar("T")
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def parse(cls: type[T], data: object) -> T:
    """Validate ``data`` into ``cls``; raise InvalidInput naming field, value and limit."""
    adapter = _ADAPTERS.setdefault(cls, TypeAdapter(cls))
    try:
        checked: T = adapter.validate_python(data)
    except ValidationError as error:
        raise invalid(error) from error
    return checked


def invalid(error: ValidationError) -> InvalidInput:
    """Turn pydantic's error into ours: one sentence a person can act on, and one per field."""
    faults = []
    for item in error.errors(include_url=False):
        kinds = set(SPECS)  # the discriminator appears in loc; people never typed it
        loc = [
            p
            for i, p in enumerate(item["loc"])
            if not (i and item["loc"][i - 1] == "spec" and p in kinds)
        ]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden" and (known := advice(str(loc[-1]))):
            message = known
        value = item.get("input")
        shown = (
            ""
            if isinstance(value, dict | list | BaseModel) or item["type"] == "missing"
            else f" (got {value!r:.80})"
        )
        faults.append({"loc": loc, "msg": message + shown})
    first = faults[0]
    where = ".".join(str(p) for p in first["loc"])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidInput(
        f"{where}: {first['msg']}{more}" if where else f"{first['msg']}{more}", errors=faults
    )
