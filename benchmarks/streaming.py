"""Fuse and quantize a model of 2 GB, and see what they hold of it.

``python -m benchmarks.streaming`` makes a synthetic model (bfloat16, random weights, sharded) and a
LoRA for it, then runs each work in a process of its own, which tells MLX's peak and the process's.
The limit is what a writer needs that holds a shard until it is complete: the largest shard and 1.2
times the largest tensor group. The same by mlx-lm itself stands beside it. ``--quick``: 200 MB.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import keep

_BLOCK = {"hidden_size": 1024, "intermediate_size": 3072, "head_dim": 64}
_HEADS, _KV_HEADS, _VOCABULARY = 16, 8, 32_000


def make(directory: Path, size: int) -> dict[str, int]:
    """Write a llama of about ``size`` bytes and a LoRA of all its linear layers, piece by piece.

    Returns bytes: of all, of the largest shard, and of the largest tensor group.
    """
    import mlx.core as mx

    from worker.engine import shards, tiny

    model, adapter = directory / "model", directory / "adapter"
    tiny.make(model, steps=0, layers=1)
    (model / "model.safetensors").unlink()
    hidden, inner, head = _BLOCK["hidden_size"], _BLOCK["intermediate_size"], _BLOCK["head_dim"]
    linears = {
        "self_attn.q_proj": (_HEADS * head, hidden),
        "self_attn.k_proj": (_KV_HEADS * head, hidden),
        "self_attn.v_proj": (_KV_HEADS * head, hidden),
        "self_attn.o_proj": (hidden, _HEADS * head),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    ends = 2 * _VOCABULARY * hidden * 2
    layers = max(1, round((size - ends) / (2 * sum(a * b for a, b in linears.values()))))
    shapes = {
        f"model.layers.{i}.{n}.weight": shape
        for i in range(layers)
        for n, shape in (
            *linears.items(),
            ("input_layernorm", (hidden,)),
            ("post_attention_layernorm", (hidden,)),
        )
    }
    shapes |= {
        f"{name}.weight": (_VOCABULARY, hidden) for name in ("model.embed_tokens", "lm_head")
    }
    shapes["model.norm.weight"] = (hidden,)
    files = _cut(shapes, size // 8)
    for number, names in enumerate(files, 1):
        drawn = {
            name: (mx.random.normal(shapes[name]) * 0.02).astype(mx.bfloat16) for name in names
        }
        path = model / f"model-{number:05d}-of-{len(files):05d}.safetensors"
        shards.write_tensors(path, drawn)
    config = json.loads((model / "config.json").read_text()) | _BLOCK
    config |= {"num_hidden_layers": layers, "num_attention_heads": _HEADS}
    config |= {"num_key_value_heads": _KV_HEADS, "vocab_size": _VOCABULARY}
    config |= {"torch_dtype": "bfloat16"}
    (model / "config.json").write_text(json.dumps(config))
    adapter.mkdir()
    pairs = {
        f"model.layers.{i}.{name}.lora_{side}": mx.random.normal(shape) * 0.02
        for i in range(layers)
        for name, (out, into) in linears.items()
        for side, shape in (("a", (into, 8)), ("b", (8, out)))
    }
    shards.write_tensors(adapter / "adapters.safetensors", pairs)
    lora = {"rank": 8, "scale": 20.0, "dropout": 0.0}
    about = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": lora}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    bytes_of = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    return {
        "model_bytes": sum(bytes_of.values()),
        "largest_shard": max(sum(bytes_of[name] for name in names) for names in files),
        "largest_group": max(bytes_of.values()),
    }


def _cut(shapes: dict[str, tuple[int, ...]], most: int) -> list[list[str]]:
    """Names by file, none of which is larger than ``most`` bytes unless one tensor is."""
    files: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if held + size > most and files[-1]:
            files.append([])
            held = 0
        files[-1].append(name)
        held += size
    return files


# --- The works ----------------------------------------------------------------------------


def _fuse(home: Path, out: Path) -> None:
    from worker.engine.adapters import open_adapter
    from worker.engine.fuse import writing
    from worker.engine.fuse.merging import Part

    part = Part("adapter", open_adapter(home / "adapter"), 1.0)
    writing.write(writing.plan(home / "model", [part]), out, False)


def _mlx_lm_fuse(home: Path, out: Path) -> None:
    from mlx_lm import fuse

    sys.argv = ["mlx_lm.fuse", "--model", str(home / "model"), "--save-path", str(out)]
    sys.argv += ["--adapter-path", str(home / "adapter")]
    fuse.main()


def _quantize(home: Path, out: Path) -> None:
    from espalier.specs import QuantizeSpec
    from worker.engine import shards
    from worker.engine.quantize import plain

    loaded = shards.open_model(home / "model")
    plain.convert(loaded, QuantizeSpec(model="team/base").recipe, print)
    shards.save_model(out, loaded, loaded.config)


def _mlx_lm_convert(home: Path, out: Path) -> None:
    from mlx_lm import convert

    convert(str(home / "model"), str(out), quantize=True)


#: What is measured, by name. Each runs alone in a process.
WORKS: dict[str, Callable[[Path, Path], None]] = {
    "fuse": _fuse,
    "mlx_lm.fuse": _mlx_lm_fuse,
    "quantize": _quantize,
    "mlx_lm.convert": _mlx_lm_convert,
}


def measured(name: str, home: Path) -> dict[str, Any]:
    """Run a work in this process; return its peaks in bytes and its seconds.

    ``resident`` is what the process grew by, from when all was imported to its highest.
    """
    import mlx.core as mx

    import worker.engine.fuse.job
    import worker.engine.quantize.job  # noqa: F401 (what an engine child has imported)

    with tempfile.TemporaryDirectory(dir=home) as out:
        before = _status("VmRSS")
        began = time.perf_counter()
        WORKS[name](home, Path(out) / "out")
        seconds = time.perf_counter() - began
        return {
            "seconds": round(seconds, 2),
            "peak": int(mx.get_peak_memory()),
            "resident": _status("VmHWM") - before,
        }


def _status(key: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none (macOS)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 MB instead of 2 GB; not kept")
    parser.add_argument("--work", choices=sorted(WORKS), help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help="where to put it all (default: temporary)")
    args = parser.parse_args()
    if args.work:
        sys.stdout.write(json.dumps(measured(args.work, args.home)) + "\n")
        return
    with tempfile.TemporaryDirectory(prefix="espalier-bench-", dir=args.home) as temporary:
        home = Path(temporary)
        facts = make(home, (200 if args.quick else 2000) * 10**6)
        limit = facts["largest_shard"] + 1.2 * facts["largest_group"]
        works = {name: _apart(name, home, limit) for name in WORKS}
    figures = {**facts, "limit": round(limit), "works": works}
    if args.quick:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        keep("streaming", figures)


def _apart(name: str, home: Path, limit: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.streaming", "--work", name, "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shares = {"of_limit": found["peak"] / limit, "resident_of_limit": found["resident"] / limit}
    return found | {key: round(value, 3) for key, value in shares.items()}


if __name__ == "__main__":
    main()
