"""Adapters of Hugging Face's PEFT as adapters of mlx-lm, and back: both compute the same.

Both add ``scale · A B`` to a linear layer; DoRA also scales its rows by a magnitude over their
norm. PEFT keeps A [rank, in], B [out, rank] and ``lora_alpha``, whose scale is alpha / rank (with
rslora alpha / √rank; https://github.com/huggingface/peft, ``tuners/lora``); mlx-lm keeps lora_a
[in, rank], lora_b [rank, out] and the scale, one rank and one scale for all layers. The bits of A
and B are moved, never rounded; only where layers differ in scale B is multiplied, as 32-bit floats.

What one side has and the other has not is refused by name.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from espalier import tensorfile
from espalier.adapterkeys import layer_keys
from espalier.errors import InvalidInput
from espalier.tensorfile import Tensor

CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
MLX_WEIGHTS = "adapters.safetensors"
_PREFIX = "base_model.model."
#: ``<layer>.lora_A.weight``; some files keep the adapter's name, ``<layer>.lora_A.default.weight``.
_LEAF = re.compile(
    r"(?P<path>.+)\.(?P<leaf>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?:\.[^.]+)??(?:\.weight)?"
)
#: Settings that do not change what a trained adapter computes.
_HARMLESS = frozenset(
    "peft_type task_type base_model_name_or_path revision inference_mode r lora_alpha lora_dropout"
    " target_modules exclude_modules bias fan_in_fan_out use_rslora use_dora modules_to_save"
    " rank_pattern alpha_pattern init_lora_weights layers_to_transform layers_pattern auto_mapping"
    " megatron_core loftq_config eva_config peft_version qalora_group_size"
    " ensure_weight_tying lora_bias runtime_config".split()
)
#: Ways to begin a LoRA that take a part of the base's weights away: the adapter fits no other base.
_BEGUN_APART = ("pissa", "olora", "loftq", "corda", "lora_ga")
#: The rank of a DoRA's or LoRA's layers of experts is not PEFT's to say.
_EXPERTS = re.compile(r"\.experts\.|\.switch_mlp\.|\.experts$")
_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in)$")


@dataclass(frozen=True, slots=True)
class Converted:
    """What an adapter became: its kind, layers, rank and scale, and the base it names."""

    kind: str
    layers: int
    rank: int
    scale: float
    base: str | None


def is_peft(names: Mapping[str, Any] | set[str] | frozenset[str]) -> bool:
    """Say whether a folder with these file names is a PEFT adapter, and none of mlx-lm."""
    return CONFIG in names and PEFT_WEIGHTS in names and MLX_WEIGHTS not in names


# --- In -----------------------------------------------------------------------------------


def to_mlx(source: Path, target: Path, *, untied: bool = False) -> Converted:
    """Write a PEFT folder as an adapter that mlx-lm loads, into ``target``.

    ``untied``: the base's output is not its embedding, so that an adapter of the embedding is
    exact too. Raises InvalidInput naming what mlx-lm has no equal for.
    """
    config = _config(source)
    _check_in(source, config)
    layers = _layers_in(source, untied=untied)
    dora = bool(config.get("use_dora"))
    for path, parts in layers.items():
        wanted = {"a", "b", "m"} if dora else {"a", "b"}
        if set(parts) != wanted:
            _refuse(f"{path} has {_names(parts)}, not {_names(wanted)}")
        _check_shapes(path, parts)
    scales = {path: _scale(config, path, parts["a"].shape[0]) for path, parts in layers.items()}
    scale = max(set(scales.values()), key=list(scales.values()).count)
    rank = max(parts["a"].shape[0] for parts in layers.values())
    tensors: dict[str, Tensor] = {}
    for path, parts in layers.items():
        a, b = parts["a"].rows_to(rank, repeat=True), parts["b"].transposed()
        if scales[path] != scale:
            b = b.times(scales[path] / scale)
        tensors[f"{path}.lora_a"] = a.transposed()
        tensors[f"{path}.lora_b"] = b.rows_to(rank)
        if dora:
            tensors[f"{path}.m"] = parts["m"]
    keys, first = layer_keys(layers)
    if dora:
        _check_dora(layers, keys, first)
    kind, base = "dora" if dora else "lora", config.get("base_model_name_or_path")
    written = {
        "fine_tune_type": kind,
        "num_layers": -1,
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": _dropout(config),
            "keys": list(keys),
        },
        "model": base,
        "imported_from": "peft",
    }
    _write(target, written, MLX_WEIGHTS, tensors, "mlx")
    return Converted(kind, len(layers), rank, scale, base)


def _check_in(source: Path, config: Mapping[str, Any]) -> None:
    """Raise InvalidInput for settings that mlx-lm's LoRA and DoRA cannot follow."""
    if config.get("peft_type") != "LORA":
        _refuse(f"it is of the type {config.get('peft_type')!r}, and only LORA has an equal")
    if not (source / PEFT_WEIGHTS).is_file():
        _refuse(
            f"it has no {PEFT_WEIGHTS}",
            "Save it again: model.save_pretrained(FOLDER, safe_serialization=True).",
        )
    if config.get("modules_to_save"):
        _refuse(
            f"modules_to_save {config['modules_to_save']} are whole layers, not an adapter",
            "Merge it with PEFT (merge_and_unload), and push the model.",
        )
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        _refuse("it trains biases (bias, lora_bias), and mlx-lm's adapters have none")
    if config.get("fan_in_fan_out"):
        _refuse("fan_in_fan_out: its layers keep their weights transposed (Conv1D, as GPT-2)")
    begun = str(config.get("init_lora_weights", True)).lower()
    if begun.startswith(_BEGUN_APART):
        _refuse(
            f"it began as {begun}, which changes the base: it fits no base but its own",
            "Save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA.",
        )
    _check_rest(config)


def _check_rest(config: Mapping[str, Any]) -> None:
    unknown = {k: v for k, v in config.items() if k not in _HARMLESS and v}
    if unknown:
        key, value = sorted(unknown.items())[0]
        _refuse(f"its setting {key} {value!r:.80} has no equal in mlx-lm")


def _layers_in(source: Path, *, untied: bool) -> dict[str, dict[str, Tensor]]:
    """Return the tensors by layer and part (a [rank, in], b [out, rank], m [out])."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensorfile.read(source / PEFT_WEIGHTS).items():
        match = _LEAF.fullmatch(name.removeprefix(_PREFIX))
        if match is None:
            _refuse(
                f"its tensor {name} is a layer's own weight, no part of a LoRA",
                "Save it without: model.save_pretrained(FOLDER, save_embedding_layers=False).",
            )
        path, leaf = match["path"], match["leaf"]
        part = {"A": "a", "B": "b", "r": "m"}[leaf[-1]]
        if tensor.dtype not in tensorfile.FLOATS or len(tensor.shape) != (1 if part == "m" else 2):
            _refuse(f"its tensor {name} is {tensor.dtype} of shape {list(tensor.shape)}")
        _check_layer(path, embedding="embedding" in leaf, untied=untied)
        layers.setdefault(path, {})[part] = tensor
    if not layers:
        _refuse(f"{PEFT_WEIGHTS} holds no tensors")
    return layers


def _check_shapes(path: str, parts: Mapping[str, Tensor]) -> None:
    a, b = parts["a"].shape, parts["b"].shape
    magnitudes = parts["m"].shape if "m" in parts else (b[0],)
    if not math.prod(a) * math.prod(b) or a[0] != b[1] or magnitudes != (b[0],):
        shapes = ", ".join(str(list(part.shape)) for part in parts.values())
        _refuse(f"the tensors of {path} do not fit each other: {shapes}")


def _check_layer(path: str, *, embedding: bool, untied: bool) -> None:
    if _EXPERTS.search(path):
        _refuse(
            f"{path} is one of several experts, which mlx-lm keeps as one layer",
            "Merge it with PEFT (merge_and_unload), and push the model.",
        )
    if embedding and not untied:
        _refuse(
            f"{path} is the embedding: where it is the output too (tie_word_embeddings), mlx-lm"
            " adds the adapter to both, PEFT to one",
            "Where the base's config.json says tie_word_embeddings false, add --untied.",
        )


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """Return what a layer's product is multiplied by; patterns match as PEFT matches them."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        try:
            found = re.match(rf"(.*\.)?({pattern})$", path)
        except re.error as error:
            _refuse(f"its alpha_pattern {pattern!r} is no pattern: {error}")
        if found:
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        _refuse(f"its lora_alpha is {alpha!r:.40}, no number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _dropout(config: Mapping[str, Any]) -> float:
    found = config.get("lora_dropout")
    return float(found) if isinstance(found, int | float) and 0 <= found < 1 else 0.0


def _check_dora(layers: Mapping[str, Any], keys: tuple[str, ...], first: int | None) -> None:
    """mlx-lm's DoRA normalises a layer it has no weights for, which is not quite nothing."""
    blocks = {match[1] for path in layers if (match := re.search(r"\.(\d+)\.", path))}
    if first or len(layers) != len(keys) * max(len(blocks), 1):
        _refuse(
            "it is a DoRA of some layers only, and mlx-lm makes the others DoRA too",
            "Merge it with PEFT (merge_and_unload), and push the model.",
        )


# --- Out ----------------------------------------------------------------------------------


def to_peft(
    source: Path, target: Path, *, base: str | None = None, untied: bool = False
) -> Converted:
    """Write an adapter of mlx-lm as a folder that ``PeftModel.from_pretrained`` loads.

    ``base`` is the model PEFT is told to load; else what the adapter's config names. Layers are
    called as mlx-lm calls them, which is as transformers does for dense decoders. Raises
    InvalidInput naming what PEFT has no equal for.
    """
    config = _config(source)
    kind = str(config.get("fine_tune_type", "lora"))
    parameters = config.get("lora_parameters")
    if kind not in ("lora", "dora") or not isinstance(parameters, dict):
        _refuse(f"it is a {kind} fine-tune, not a LoRA", "Export the model instead.")
    tensors: dict[str, Tensor] = {}
    paths: dict[str, None] = {}
    rank = 0
    for name, tensor in tensorfile.read(source / MLX_WEIGHTS).items():
        path, _, leaf = name.rpartition(".")
        embedding = _EMBEDDINGS.search(path) is not None
        if len(tensor.shape) != (1 if leaf == "m" else 2) or leaf not in ("lora_a", "lora_b", "m"):
            _refuse(f"its tensor {name} of shape {list(tensor.shape)} is none that PEFT has")
        _check_layer(path, embedding=embedding, untied=untied)
        if leaf == "m":
            tensors[f"{_PREFIX}{path}.lora_magnitude_vector"] = tensor
            continue
        paths[path] = None
        side = leaf[-1].upper()
        rank = max(rank, tensor.shape[1 if side == "A" else 0])
        named = f"lora_embedding_{side}" if embedding else f"lora_{side}.weight"
        tensors[f"{_PREFIX}{path}.{named}"] = tensor.transposed()
    if not paths:
        _refuse(f"{MLX_WEIGHTS} holds no LoRA")
    scale = float(parameters["scale"])
    named_base = base or config.get("model")
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": named_base,
        "r": rank,
        "lora_alpha": _whole(scale * rank),
        "lora_dropout": float(parameters.get("dropout") or 0.0),
        # In full: the last part alone would mean every block, also those that are not trained.
        "target_modules": sorted(paths),
        "use_dora": kind == "dora",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
    }
    _write(target, written, PEFT_WEIGHTS, tensors, "pt")
    return Converted(kind, len(paths), rank, scale, named_base)


def _whole(alpha: float) -> int | float:
    return int(alpha) if alpha.is_integer() else alpha


# --- Both ---------------------------------------------------------------------------------


def _config(source: Path) -> dict[str, Any]:
    try:
        found = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        _refuse(f"it has no {CONFIG}")
    except ValueError as error:
        _refuse(f"its {CONFIG} is not JSON: {error}")
    if not isinstance(found, dict):
        _refuse(f"its {CONFIG} is not a JSON object")
    return found


def _write(
    target: Path, config: Mapping[str, Any], weights: str, tensors: Mapping[str, Tensor], form: str
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    tensorfile.write(target / weights, tensors, form)


def _names(parts: Any) -> str:
    return " and ".join({"a": "A", "b": "B", "m": "a magnitude"}[part] for part in sorted(parts))


def _refuse(why: str, hint: str | None = None) -> NoReturn:
    raise InvalidInput(f"The adapter cannot be converted: {why}.", hint=hint)
