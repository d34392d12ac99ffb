"""The flags of train, eval, quantize, fuse and export, made from their specs' fields.

A flag is its field in kebab case, as mlx-lm has it. Values go as far as their type is checked
here; limits are the spec's own business, once for form, API, YAML and CLI.
"""

import types
from collections.abc import Iterator, Mapping
from inspect import Parameter
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import typer
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from espalier.specs import SPECS, JobRequest, LoraParameters
from espalier.states import Kind

_PLAIN = (int, float, str, bool)
#: Lists whose entries are written as words: the spec reads them.
_WORDS = frozenset({"variants"})
#: Flags of a nested key, where one word is enough to know what is meant.
_NESTED: dict[str, type[BaseModel]] = {"lora_parameters": LoraParameters}


def kebab(name: str) -> str:
    return "--" + name.replace("_", "-")


def spec_flags(kind: Kind) -> list[Parameter]:
    """Return a keyword parameter, annotated for Typer, for each flag of the kind's spec."""
    return [_parameter(name, field) for name, _, field in _fields(SPECS[kind]) if name != "kind"]


def request_flags() -> list[Parameter]:
    """Return the parameters of everything that surrounds a spec in a JobRequest."""
    return [
        _parameter(name, field) for name, field in JobRequest.model_fields.items() if name != "spec"
    ]


def gather(kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given as a piece of the spec's input."""
    found: dict[str, Any] = {}
    for name, path, field in _fields(SPECS[kind]):
        if given.get(name) is not None:
            inside = found.setdefault(path, {}) if path else found
            inside[name] = _listed(given[name]) if is_list(field.annotation) else given[name]
    return found


def _fields(spec: type[BaseModel]) -> Iterator[tuple[str, str | None, FieldInfo]]:
    """Yield (flag's name, key it lies under, field) for what a flag can say."""
    for name, field in spec.model_fields.items():
        if name in _NESTED:
            for inner, inner_field in _NESTED[name].model_fields.items():
                if _plain_type(inner_field.annotation) is not None:
                    yield inner, name, inner_field
        elif name in _WORDS or _plain_type(field.annotation) is not None:
            yield name, None, field


def _bare(annotation: Any) -> Any:
    """Return a field's type without what may be absent and what is said about it."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _bare(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        inner = [arg for arg in get_args(annotation) if arg is not type(None)]
        return _bare(inner[0]) if len(inner) == 1 else None
    return annotation


def is_list(annotation: Any) -> bool:
    """Say whether a field is a list of plain values: its flag takes them with commas between."""
    bare = _bare(annotation)
    return get_origin(bare) is tuple and _plain_type(get_args(bare)[0]) is not None


def _listed(text: str) -> list[str]:
    return [part for part in (part.strip() for part in text.split(",")) if part]


def _plain_type(annotation: Any) -> Any:
    """Return the type a flag has: int, float, str, bool or a Literal; None for anything deeper.

    A list of those is a text.
    """
    bare = _bare(annotation)
    if get_origin(bare) is Literal or bare in _PLAIN:
        return bare
    return str if is_list(bare) else None


def _parameter(name: str, field: FieldInfo) -> Parameter:
    kind = _plain_type(field.annotation) or str
    if any(isinstance(item, BeforeValidator) for item in field.metadata):
        kind = str  # it is written in more ways than its type: 2GB
    flag = kebab(name)
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=_help(field),
    )
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _help(field: FieldInfo) -> str:
    """Return what it means, its limits and its default, as far as there are any."""
    notes = []
    for item in field.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if isinstance(item, getattr(annotated_types, name.capitalize())):
                notes.append(f"{sign} {getattr(item, name)}")
    if is_list(field.annotation):
        notes.append("separated by commas")
    if not field.is_required() and field.default not in (None, "", ()):
        on_off = "on" if field.default else "off"
        notes.append(f"default {on_off if isinstance(field.default, bool) else field.default}")
    words = [field.description or "", f"({', '.join(notes)})" if notes else ""]
    return " ".join(word for word in words if word)
