"""One validation for form, API, CLI and YAML, and its faults as sentences."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from espalier.errors import InvalidInput
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


#: Keys of an ``mlx_lm.lora --config`` file that say where files lie on one machine: the job
#: decides these itself.
_LOCAL_KEYS = frozenset({"train", "adapter_path", "config", "report_to", "project_name"})


def from_mlx_lm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``mlx_lm.lora --config`` mapping as the input of TrainSpec.

    Keys that only mean something on one machine are dropped, and so are nulls (mlx-lm's way of
    saying "default"). Raises InvalidInput for ``trust_remote_code: true``.
    """
    if config.get("trust_remote_code"):
        raise InvalidInput(
            "trust_remote_code is true: code from a model repository is not run here.",
            errors=[{"loc": ["trust_remote_code"], "msg": "must be false"}],
        )
    skip = _LOCAL_KEYS | {"trust_remote_code"}
    return {k: v for k, v in config.items() if k not in skip and v is not None}
