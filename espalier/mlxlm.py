"""A spec as ``mlx_lm.lora``'s own YAML and command: the same run, by hand."""

from typing import Any

import yaml

from espalier.refs import HubRef, parse_ref
from espalier.specs import FEATURES, TrainSpec

#: Ours alone: what mlx_lm.lora does instead, where a spec asks for more than it has.
_OURS = {
    "packing": "mlx_lm.lora pads each row and packs none",
    "micro_batch_size": "mlx_lm.lora computes a batch at once",
    "early_stopping_patience": "mlx_lm.lora runs all iters",
}


def to_mlx_lm(spec: TrainSpec, **places: str | None) -> dict[str, Any]:
    """Return the ``mlx_lm.lora --config`` mapping that trains as ``spec`` does.

    ``places`` replaces ``model``, ``data``, ``resume_adapter_file`` and ``adapter_path`` by paths;
    without, a reference becomes the repository of that name, which mlx-lm reads from a hub: from
    Espalier's own with ``HF_ENDPOINT``.
    """
    config = {k: v for k, v in spec.model_dump(mode="json").items() if k in KEYS}
    config = {k: v for k, v in config.items() if v not in (None, [], {})} | {"train": True}
    config["lora_parameters"] = spec.lora_parameters.model_dump(mode="json", exclude_none=True)
    if spec.lr_schedule:
        config["lr_schedule"] = spec.lr_schedule.as_mlx_lm()
    if spec.hf_dataset:
        config["hf_dataset"] = [
            item.model_dump(exclude_none=True) | {"path": repository(item.path)}
            for item in spec.hf_dataset
        ]
        del config["data"]
    for key in ("model", "data", "resume_adapter_file"):
        if key in config:
            config[key] = repository(config[key])
    return config | {key: place for key, place in places.items() if place is not None}


#: What a config of mlx-lm may hold.
KEYS = frozenset(
    "model train data fine_tune_type optimizer optimizer_config seed num_layers batch_size iters"
    " val_batches learning_rate steps_per_report steps_per_eval resume_adapter_file adapter_path"
    " save_every test test_batches max_seq_length grad_checkpoint grad_accumulation_steps"
    " clear_cache_threshold lr_schedule lora_parameters mask_prompt report_to project_name"
    " hf_dataset".split()
) | set(FEATURES)


def repository(ref: str) -> str:
    """Return what mlx-lm calls a reference: a hub's repository, without its revision."""
    parsed = parse_ref(ref, project="team")
    if isinstance(parsed, HubRef):
        return parsed.repo
    return getattr(parsed, "path", ref)


def differences(spec: TrainSpec) -> tuple[str, ...]:
    """Return what mlx_lm.lora would do otherwise, a sentence each; none with ``order: mlx-lm``."""
    found = [why for key, why in _OURS.items() if getattr(spec, key, None)]
    if spec.order != "mlx-lm":
        found.append(f"mlx_lm.lora draws rows in another order than {spec.order!r}")
    if spec.fine_tune_type != "full" and spec.grad_checkpoint and spec.lora_parameters.dropout:
        found.append("mlx_lm.lora drops out anew where grad_checkpoint computes again")
    if getattr(spec, "keep", "last") == "best":
        found.append("mlx_lm.lora hands out the last step's weights, not the best")
    return tuple(found)


def by_hand(spec: TrainSpec, url: str | None = None) -> str:
    """Return the shell command with which ``mlx_lm.lora`` does the same, remarks above it.

    ``url`` is the server whose store the references are read from.
    """
    remarks = [f"# Differs: {why}." for why in differences(spec)]
    where = f"HF_ENDPOINT={url} " if url else ""
    document = yaml.safe_dump(to_mlx_lm(spec), sort_keys=False, default_flow_style=None)
    command = f"{where}mlx_lm.lora --config /dev/stdin <<'YAML'\n{document}YAML"
    return "\n".join([*remarks, command])
