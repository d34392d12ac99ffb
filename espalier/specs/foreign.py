"""Coming from ``mlx_lm.lora``: its configuration as the input of a spec.

Every key of mlx-lm 0.32 (``mlx_lm/lora.py`` CONFIG_DEFAULTS, its flags, and those that only a YAML
file can hold) is a key of TrainSpec, or stands in ``ELSEWHERE`` with what to do instead.
"""

from collections.abc import Mapping
from typing import Any

from espalier.errors import InvalidInput

#: mlx-lm's keys that are no key of a spec: what stands in their place.
ELSEWHERE = {
    "train": "`espalier train` trains and `espalier eval` measures; leave it out",
    "config": "a config is read where the command runs; leave it out",
    "adapter_path": "a job's output is a version in the store, called by `name`; leave it out",
    "trust_remote_code": "code from a model repository is not run here; leave it out",
}
#: Keys that people bring from other programs, by what they are called here.
_MISNAMED = {
    "alpha": "mlx-lm's LoRA takes scale, which is alpha ÷ rank elsewhere",
    "lora_alpha": "mlx-lm's LoRA takes scale, which is alpha ÷ rank elsewhere",
    "lora_rank": "it is lora_parameters.rank",
    "lora_layers": "it is num_layers",
    "epochs": "mlx-lm counts steps: iters is rows ÷ batch_size × epochs",
}


def advice(key: str) -> str | None:
    """Return what to do about a key that no spec has, where it is known from elsewhere."""
    return ELSEWHERE.get(key) or _MISNAMED.get(key)


def from_mlx_lm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``mlx_lm.lora --config`` mapping as the input of TrainSpec.

    What a job decides itself (ELSEWHERE) is dropped, and so are nulls, mlx-lm's way of saying
    "default". ``data`` gives way to ``hf_dataset``, as in mlx-lm. Raises InvalidInput for
    ``trust_remote_code: true``.
    """
    if config.get("trust_remote_code"):
        raise InvalidInput(
            "trust_remote_code is true: code from a model repository is not run here.",
            hint="Take the key out. A model whose architecture mlx-lm has built in needs none.",
            errors=[{"loc": ["trust_remote_code"], "msg": "must be false"}],
        )
    found = {k: v for k, v in config.items() if k not in ELSEWHERE and v is not None}
    if isinstance(found.get("optimizer"), str):
        found["optimizer"] = found["optimizer"].lower()
    if found.get("hf_dataset"):
        found.pop("data", None)
        found["hf_dataset"] = _entries(found["hf_dataset"])
    return found


def _entries(given: Any) -> Any:
    """Entries of ``hf_dataset`` without what mlx-lm itself overwrites (``mask_prompt``)."""
    listed = [given] if isinstance(given, Mapping) else given
    if not isinstance(listed, list) or not all(isinstance(item, Mapping) for item in listed):
        return given
    dropped = ("mask_prompt",)
    return [{k: v for k, v in i.items() if k not in dropped and v is not None} for i in listed]
