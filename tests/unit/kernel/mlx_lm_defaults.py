"""mlx-lm's own defaults, read from its source without importing MLX."""

import ast
import importlib.util
from pathlib import Path


def _read() -> dict[str, object]:
    package = importlib.util.find_spec("mlx_lm")
    assert package is not None
    assert package.origin is not None
    source = (Path(package.origin).parent / "lora.py").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CONFIG_DEFAULTS":
            defaults: dict[str, object] = ast.literal_eval(node.value)
            return defaults
    raise LookupError("mlx_lm/lora.py has no CONFIG_DEFAULTS any more")


LORA_DEFAULTS = _read()
