"""Where an adapter's layers lie in a model: mlx-lm's ``keys``, from the tensors' names."""

import re
from collections.abc import Iterable

#: ``model.layers.3.self_attn.q_proj``: the block's number, and the layer in it.
_IN_BLOCK = re.compile(r"(?:^|.*?\.)(?:layers|h|blocks)\.(\d+)\.(.+)")


def layer_keys(paths: Iterable[str]) -> tuple[tuple[str, ...], int | None]:
    """Return the ``keys`` that name these layers for mlx-lm, and the first block with one.

    A layer inside a block is named from the block on (``self_attn.q_proj``), any other in full
    (``lm_head``). The number is None when no layer is in a block.
    """
    keys: dict[str, None] = {}
    blocks = []
    for path in paths:
        match = _IN_BLOCK.fullmatch(path)
        if match:
            blocks.append(int(match[1]))
        keys[match[2] if match else path] = None
    return tuple(keys), min(blocks, default=None)
