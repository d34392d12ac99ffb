"""YAML files of people: mlx-lm's configs and Espalier's own."""

import re
from pathlib import Path
from typing import Any

import yaml

from espalier.errors import InvalidInput


class _Loader(yaml.SafeLoader):
    """Safe, reads ``1e-5`` as a number, and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:str" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep=deep)


# YAML 1.1, which PyYAML follows, wants a dot and a sign in 1.0e-5; people and mlx-lm write 1e-5.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |\.[0-9_]+(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, name: str = "YAML") -> dict[str, Any]:
    """Return the mapping that ``text`` holds; an empty one for an empty text.

    Raises InvalidInput with ``name``, line and column for anything else.
    """
    try:
        found = yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidInput(f"{name}{where}: {error.problem or error}.") from error
    except yaml.YAMLError as error:
        raise InvalidInput(f"{name} is not YAML: {error}.") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InvalidInput(f"{name} must hold `key: value` lines, as mlx_lm.lora --config does.")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in the file. Raises InvalidInput when it cannot be read or is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}.") from error
    return parse_yaml(text, str(path))
