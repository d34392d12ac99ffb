"""Files with sound headers and little in them, as models, adapters and cards are."""

import json
import random
import struct
from collections.abc import Mapping
from itertools import islice
from typing import Any

from espalier.textsql import texts

CARD = """---
license: apache-2.0
base_model: Qwen/Qwen2.5-0.5B-Instruct
tags: [sql, text-generation]
datasets: [team/wikisql]
---
# Qwen2.5 0.5B, instruct

The small model that **every** adapter of the team begins from. It answers in one SQL statement
when it is asked to, see the [config](config.json) and the
[paper](https://arxiv.org/abs/2412.15115).

## How it was measured

| split | rows | perplexity |
|-------|-----:|-----------:|
| valid |   40 |      9.814 |
| test  |   40 |      9.902 |

> Numbers are of the base, before any training.

```python
prompt = "How many rows are there?"
```

- quick on any Mac
- 988 MB at 16 bits
"""

_LAYER = (("self_attn.q_proj", (64, 64)), ("self_attn.k_proj", (16, 64)), ("mlp.up_proj", (96, 64)))


def safetensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, **metadata: str) -> bytes:
    """Return a sound file in bfloat16, name → shape; of zeros, or of the seed's numbers."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + _numbers(end, seed)


def _numbers(length: int, seed: int) -> bytes:
    """Return so many bytes of bfloat16: nearly the same for seeds that are near."""
    if not seed:
        return bytes(length)
    same, other = random.Random(0), random.Random(seed)
    block = b"".join(
        struct.pack("<f", same.gauss(0, 0.1) + other.gauss(0, 0.002 * seed))[2:]
        for _ in range(1024)
    )
    return (block * (length // len(block) + 1))[:length]


def weights(layers: int = 4, seed: int = 0) -> bytes:
    """Return a small transformer's weights."""
    found = {"model.embed_tokens.weight": (600, 64), "model.norm.weight": (64,)}
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in _LAYER}
    return safetensors(found, seed, format="mlx")


def adapter() -> bytes:
    """Return the weights of an adapter of rank 16."""
    shapes = {
        f"model.layers.{layer}.self_attn.{name}_proj.lora_{side}": shape
        for layer in range(4)
        for name in "qv"
        for side, shape in (("a", (64, 16)), ("b", (16, 64)))
    }
    return safetensors(shapes)


def gguf() -> bytes:
    """Return a small GGUF file: a vocabulary, and two tensors."""
    words = [f"token-{i}" for i in range(600)]
    keys = [
        _key("general.architecture", 8, _text("qwen2")),
        _key("general.name", 8, _text("sql-lora-fused")),
        _key("qwen2.block_count", 4, struct.pack("<I", 24)),
        _key("qwen2.rope.freq_base", 6, struct.pack("<f", 1e6)),
        _key(
            "tokenizer.ggml.tokens",
            9,
            struct.pack("<IQ", 8, len(words)) + b"".join(map(_text, words)),
        ),
    ]
    tensors = _tensor("token_embd.weight", (64, 600), 8, 0)
    tensors += _tensor("output_norm.weight", (64,), 0, 40_800)
    head = struct.pack("<IQQ", 3, 2, len(keys))
    return b"GGUF" + head + b"".join(keys) + tensors + bytes(32 + 40_800 + 256)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _key(name: str, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


def _tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _text(name) + dimensions + struct.pack("<IQ", kind, offset)


def samples(rows: int) -> bytes:
    """Samples as an evaluation keeps them: the base is right now and then, the adapter mostly."""
    return b"".join(
        json.dumps(_sample(index, text)).encode() + b"\n"
        for index, text in enumerate(islice(texts(41), rows), 1)
    )


def _sample(index: int, text: str) -> dict[str, Any]:
    prompt, _, reference = text.rpartition(" SELECT")
    reference = f"SELECT{reference}"
    base = reference if index % 5 == 0 else reference.partition(" WHERE")[0].lower()
    tuned = reference.replace("'", "", 1) if index % 7 == 0 else reference
    answers = {"base": _answer(base, reference), "tuned": _answer(tuned, reference)}
    return {"line": index, "prompt": prompt, "reference": reference, "answers": answers}


def _answer(text: str, reference: str) -> dict[str, Any]:
    same = text == reference
    note = {} if same else {"execution_match": "finds 24 rows, the reference finds 3 rows"}
    scores = {
        "exact_match": float(same),
        "execution_match": float(same),
        "rouge_l": 0.4 + 0.6 * same,
    }
    return {
        "text": text,
        "tokens": len(text) // 3,
        "ended": "stop",
        "scores": scores,
        "notes": note,
    }
