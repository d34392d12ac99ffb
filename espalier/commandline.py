"""The command that submits a job again: what a page shows to be copied into a terminal."""

import shlex
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from espalier.specs import LoraParameters, Spec


def command(
    spec: Spec,
    *,
    name: str | None = None,
    project: str | None = None,
    priority: int = 0,
) -> str:
    """Return the ``espalier <kind> …`` that submits ``spec``, with the flags that differ only.

    Keys that have no flag (``lr_schedule``, ``optimizer_config``, ``hf_dataset``) follow as YAML on
    standard input, as ``--config`` reads them.
    """
    words = ["espalier", spec.kind]
    nested: dict[str, Any] = {}
    for key, value, default in _changed(spec):
        flag = key.replace("_", "-")
        if _is_list(value):
            words += [f"--{flag}", ",".join(map(_text, value))]
        elif isinstance(value, dict | list):
            nested[key] = value
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value != default:
            words += [f"--{flag}", _text(value)]
    for key, given in (("name", name), ("project", project), ("priority", priority or None)):
        if given is not None:
            words += [f"--{key}", str(given)]
    if not nested:
        return shlex.join(words)
    document = yaml.safe_dump(nested, sort_keys=False, default_flow_style=None)
    return f"{shlex.join([*words, '--config', '/dev/stdin'])} <<'YAML'\n{document}YAML"


def _changed(spec: BaseModel) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, JSON value, default) of each field that is not at its default."""
    dumped = spec.model_dump(mode="json")
    for key, info in type(spec).model_fields.items():
        if key == "kind":
            continue
        value, default = dumped[key], None if info.is_required() else info.default
        if isinstance(default, LoraParameters):
            yield from _changed(LoraParameters(**value))
            continue
        if isinstance(value, dict):  # without a default of its own: all that was said
            value = {k: v for k, v in value.items() if v is not None}
        if isinstance(default, tuple):  # JSON has lists
            default = list(default)
        if value != default:
            yield key, value, default


def _is_list(value: Any) -> bool:
    """Say whether a flag takes it, with commas."""
    return isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
