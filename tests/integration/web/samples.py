"""Small and sound files of every kind that people bring; importing them imports nothing else."""

import json
import struct
from typing import Any


def safetensors(tensors: dict[str, list[int]] | None = None) -> bytes:
    """Return a sound file of zeros: name → shape, float16."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in (tensors or {"w": [2, 2]}).items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": safetensors(),
    "tokenizer.json": b"{}",
}
ADAPTER = {"adapter_config.json": b'{"rank": 8}', "adapters.safetensors": safetensors()}
_LINE = b'{"prompt": "How many?", "completion": "SELECT COUNT(*)"}\n'
DATASET = {"train.jsonl": _LINE * 8, "valid.jsonl": _LINE * 4, "test.jsonl": _LINE * 4}
