"""Small model and adapter folders, made in tenths of a second: nothing is trained."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import _get_classes, load, quantize_model, save, save_model

from worker.engine import tiny


def make_model(directory: Path, **keys: Any) -> Path:
    """A tiny llama; ``keys`` are those of ``tiny.make``."""
    tiny.make(directory, **({"steps": 0, "vocabulary": 320} | keys))
    return directory


def make_experts(directory: Path, dense: Path) -> Path:
    """A mixture of four experts with the tokenizer of ``dense``."""
    shutil.copytree(dense, directory, ignore=shutil.ignore_patterns("model*", "config.json"))
    config = json.loads((dense / "config.json").read_text()) | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }
    model_class, args_class = _get_classes(config)
    mx.random.seed(5)
    save_model(directory, model_class(args_class.from_dict(config)))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def as_hugging_face_has_it(source: Path, directory: Path) -> Path:
    """The mixture of experts with a tensor for each expert, as others save it, in two files."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("model*"))
    loose: dict[str, Any] = {}
    for name, value in tensors(source).items():
        if ".switch_mlp." not in name:
            loose[name] = value
            continue
        for expert in range(value.shape[0]):
            loose[name.replace("switch_mlp", f"experts.{expert}")] = value[expert]
    names = sorted(loose)
    for number, some in enumerate((names[::2], names[1::2]), 1):
        path = directory / f"model-{number:05d}-of-00002.safetensors"
        mx.save_safetensors(str(path), {name: loose[name] for name in some})
    return directory


def quantized(
    source: Path, directory: Path, bits: int, group: int, mode: str, **layers: Any
) -> Path:
    """The model at other bits, as mlx_lm.convert saves it; ``layers``: end of path → settings."""

    def predicate(path: str, _: Any) -> bool | dict[str, Any]:
        return next((dict(v) for k, v in layers.items() if path.endswith(k)), True)

    model, tokenizer, config = load(str(source), return_config=True)
    model, config = quantize_model(model, config, group, bits, mode, quant_predicate=predicate)
    save(directory, str(source), model, tokenizer, config)
    return directory


def make_adapter(
    directory: Path,
    base: Path,
    kind: str = "lora",
    seed: int = 0,
    num_layers: int = -1,
    **parameters: Any,
) -> Path:
    """An adapter for ``base`` as mlx-lm saves it, its weights random, so that it changes much."""
    model, _ = load(str(base))
    lora: Mapping[str, Any] = {"rank": 4, "scale": 3.0, "dropout": 0.0} | parameters
    mx.random.seed(seed)
    if kind != "full":
        linear_to_lora_layers(model, num_layers, dict(lora), use_dora=kind == "dora")
    leaves = ("weight",) if kind == "full" else ("lora_a", "lora_b", "m")
    weights = {
        name: mx.random.normal(value.shape) * 0.05 + (0 if "lora_" in name else value)
        for name, value in tree_flatten(model.parameters())
        if name.rpartition(".")[2] in leaves
    }
    directory.mkdir(parents=True)
    mx.save_safetensors(str(directory / "adapters.safetensors"), weights)
    config = {"fine_tune_type": kind, "num_layers": num_layers, "lora_parameters": lora}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def tensors(directory: Path) -> dict[str, Any]:
    """All weights of a model folder by name."""
    return {
        name: value
        for path in sorted(directory.glob("model*.safetensors"))
        for name, value in mx.load(str(path)).items()
    }


def same_bits(left: Path, right: Path) -> bool:
    """Whether two model folders hold the same tensors, names, types, shapes and bits."""
    first, second = tensors(left), tensors(right)
    return first.keys() == second.keys() and all(
        value.dtype == second[name].dtype
        and value.shape == second[name].shape
        and bool(mx.array_equal(value, second[name]).item())
        for name, value in first.items()
    )
