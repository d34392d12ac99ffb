"""Form fields made from the specs themselves: names, defaults, limits and texts have one source.

A field's name is ``<step>.<key>`` or ``<step>.<key>.<key>``, its value the text that was typed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from espalier.errors import InvalidInput
from espalier.figures import number

#: What a reference field picks from.
PICKS = {
    "model": "model",
    "data": "dataset",
    "calibration": "dataset",
    "adapter": "adapter",
    "resume_adapter_file": "adapter",
}


@dataclass(frozen=True, slots=True)
class FormField:
    """One input of a form. ``default`` is shown where nothing is typed."""

    name: str
    label: str
    about: str
    widget: Literal["number", "text", "choice", "check", "reference", "json"]
    value: str = ""
    default: str = ""
    limits: str = ""
    minimum: float | None = None
    maximum: float | None = None
    step: str = "any"
    choices: tuple[str, ...] = ()
    pick: str | None = None
    required: bool = False
    example: str = ""
    error: str | None = None


def fields_of(
    spec: type[BaseModel], prefix: str, typed: Mapping[str, str], faults: Mapping[str, str]
) -> list[FormField]:
    """Return the fields of a spec, with what was typed and what was wrong with it."""
    return [
        _field(name, info, kind, typed, faults) for name, info, kind in _flat(spec, prefix) if kind
    ]


def collect(spec: type[BaseModel], prefix: str, form: Mapping[str, str]) -> dict[str, Any]:
    """Return what was typed as the input of the spec; empty fields are left to its defaults.

    Raises InvalidInput for JSON that cannot be read; everything else is the spec's to judge.
    """
    found: dict[str, Any] = {}
    for name, _info, kind in _flat(spec, prefix):
        keys = name.removeprefix(f"{prefix}.").split(".")
        value = _value(name, kind, form)
        if value is None:
            continue
        inner = found
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
    return found


def spread(prefix: str, spec: Mapping[str, Any]) -> dict[str, str]:
    """Return a spec as what would have been typed: the inverse of ``collect``.

    ``<prefix>.kind`` marks a step that was filled in: a box it leaves out was not ticked.
    """
    typed: dict[str, str] = {}
    for key, value in spec.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping) and key != "optimizer_config":
            typed |= spread(name, value)
        elif isinstance(value, bool):
            typed |= {name: "on"} if value else {}
        elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            typed[name] = json.dumps(value)
        elif isinstance(value, list | tuple):
            typed[name] = ", ".join(_plain(item) for item in value)
        elif isinstance(value, Mapping):
            typed[name] = json.dumps(value) if value else ""
        elif value is not None:
            typed[name] = _plain(value)
    return typed


# --- One field ----------------------------------------------------------------------------


def _flat(spec: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Yield (name, field, type), nested models flattened; ``kind`` is not a person's to type."""
    for key, info in spec.model_fields.items():
        kind = _without_none(info.annotation)
        if key == "kind":
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _flat(kind, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", info, kind


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        options = [option for option in get_args(annotation) if option is not NoneType]
        return _bare(options[0])
    return _bare(annotation)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def _field(
    name: str, info: FieldInfo, kind: Any, typed: Mapping[str, str], faults: Mapping[str, str]
) -> FormField:
    key = name.rsplit(".", 1)[1]
    is_empty = info.is_required() or info.default is None or info.default in ((), {})
    default = "" if is_empty else _plain(info.default)
    low, high, limits = _limits(info)
    widget = _widget(key, kind)
    path = name.split(".")[1:]
    untouched = f"{name.split('.')[0]}.kind" not in typed
    return FormField(
        name=name,
        label=" ".join(path).replace("lora_parameters", "LoRA").replace("_", " "),
        about=info.description or "",
        widget=widget,
        value=typed.get(name, "on" if untouched and info.default is True else ""),
        default="" if widget in ("check", "json") else default,
        limits=limits,
        minimum=low,
        maximum=high,
        step="1" if kind is int else "any",
        choices=tuple(str(c) for c in get_args(kind)) if widget == "choice" else (),
        pick=PICKS.get(key),
        required=info.is_required() and len(path) == 1,
        example=str(info.examples[0]) if info.examples else "",
        error=faults.get(name),
    )


def _widget(
    key: str, kind: Any
) -> Literal["number", "text", "choice", "check", "reference", "json"]:
    if key in PICKS:
        return "reference"
    if get_origin(kind) is Literal:
        return "choice"
    if kind is bool:
        return "check"
    if kind in (int, float):
        return "number"
    return "json" if _is_structured(kind) else "text"


def _is_structured(kind: Any) -> bool:
    """Say whether a value of this type takes more than a line: a mapping, or several of them."""
    if get_origin(kind) is dict:
        return True
    if get_origin(kind) is not tuple:
        return False
    item = _bare(get_args(kind)[0])
    options = get_args(item) if get_origin(item) in (Union, UnionType) else (item,)
    return any(
        get_origin(o) in (dict, Mapping) or (isinstance(o, type) and issubclass(o, BaseModel))
        for o in map(_bare, options)
    )


def _limits(info: FieldInfo) -> tuple[float | None, float | None, str]:
    """Return the bounds that a browser can check, and both in words."""
    low = high = None
    words = []
    for rule in info.metadata:
        match rule:
            case Ge(ge=bound):
                low, text = float(bound), f"at least {_plain(bound)}"  # type: ignore[arg-type]
            case Gt(gt=bound):
                text = f"above {_plain(bound)}"
            case Le(le=bound):
                high, text = float(bound), f"at most {_plain(bound)}"  # type: ignore[arg-type]
            case Lt(lt=bound):
                text = f"below {_plain(bound)}"
            case _:
                continue
        words.append(text)
    if low is not None and high is not None:
        return low, high, f"{_spaced(low)} to {_spaced(high)}"
    return low, high, ", ".join(words)


def _spaced(value: float) -> str:
    return number(int(value)) if value.is_integer() else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _value(name: str, kind: Any, form: Mapping[str, str]) -> Any:
    if kind is bool:
        return name in form
    text = form.get(name, "").strip()
    if not text:
        return None
    if get_origin(kind) is tuple and not text.startswith(("[", "{")):
        return [part for part in text.replace(",", " ").split() if part]
    if get_origin(kind) in (dict, tuple):
        try:
            return json.loads(text)
        except ValueError as error:
            key = name.split(".")[1:]
            raise InvalidInput(
                f"{key[-1]}: this is not JSON: {error}.",
                errors=[{"loc": [name], "msg": f"not JSON: {error}"}],
            ) from error
    if get_origin(kind) is Literal and all(isinstance(c, int) for c in get_args(kind)):
        return int(text) if text.lstrip("-").isdigit() else text
    return text
