"""What mlx-lm hands to ``mlx.optimizers``: settings and schedules, checked before anything runs."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from espalier.specs.base import Frozen

Optimizer = Literal["adam", "adamw", "muon", "sgd", "adafactor"]

_ADAM = {"betas": list, "eps": float, "bias_correction": bool}
#: The keyword arguments of each optimizer in mlx 0.32, beside the learning rate: mlx raises a
#: TypeError for any other, once the model is loaded.
SETTINGS: dict[str, dict[str, type]] = {
    "adam": _ADAM,
    "adamw": _ADAM | {"weight_decay": float},
    "muon": {"momentum": float, "weight_decay": float, "nesterov": bool, "ns_steps": int},
    "sgd": {"momentum": float, "weight_decay": float, "dampening": float, "nesterov": bool},
    "adafactor": {
        "eps": list,
        "clip_threshold": float,
        "decay_rate": float,
        "beta_1": float,
        "weight_decay": float,
        "scale_parameter": bool,
        "relative_step": bool,
        "warmup_init": bool,
    },
}
#: Positional arguments of each function in ``mlx.optimizers.schedulers``: fewest, most, names.
SCHEDULES = {
    "cosine_decay": (2, 3, "init, decay_steps, end"),
    "exponential_decay": (2, 2, "init, decay_rate"),
    "step_decay": (3, 3, "init, decay_rate, step_size"),
    "linear_schedule": (3, 3, "init, end, steps"),
}

Setting = bool | int | float | list[float] | None


def _fits(name: str, key: str, value: Setting) -> str | None:
    """Return what is wrong with one setting, or None."""
    known = SETTINGS[name]
    if key not in known:
        return f"{name} has no {key!r}: it takes {', '.join(known)}"
    kind = known[key]
    if value is None:
        return None if key == "beta_1" else f"{name}'s {key} is null: leave it out for its default"
    if kind is list:
        two = isinstance(value, list) and len(value) == 2
        return None if two else f"{name}'s {key} takes two numbers, not {value!r}"
    is_bool = isinstance(value, bool)
    if kind is bool:
        return None if is_bool else f"{name}'s {key} is true or false, not {value!r}"
    numbers = int if kind is int else int | float
    fits = isinstance(value, numbers) and not is_bool
    return None if fits else f"{name}'s {key} takes {_WORDS[kind]}, not {value!r}"


_WORDS: dict[type, str] = {int: "a whole number", float: "a number"}


def _settings(config: dict[str, dict[str, Setting]]) -> dict[str, dict[str, Setting]]:
    for name, given in config.items():
        for key, value in given.items():
            fault = _fits(name, key, value)
            if fault:
                raise ValueError(fault)
    return config


#: mlx-lm's ``optimizer_config``: settings by optimizer. Those of others than the chosen one are
#: checked too: they are there to be switched to.
OptimizerConfig = Annotated[dict[Optimizer, dict[str, Setting]], AfterValidator(_settings)]

assert set(SETTINGS) == set(get_args(Optimizer))


class LrSchedule(Frozen):
    """mlx-lm's ``lr_schedule``: a function of ``mlx.optimizers`` with its positional arguments."""

    name: Literal["cosine_decay", "exponential_decay", "step_decay", "linear_schedule"]
    arguments: tuple[float, ...] = Field(min_length=1, max_length=4)
    warmup: int = Field(0, ge=0)
    warmup_init: float = Field(0.0, ge=0.0)

    @model_validator(mode="after")
    def _arguments_fit(self) -> "LrSchedule":
        fewest, most, names = SCHEDULES[self.name]
        if not fewest <= len(self.arguments) <= most:
            raise ValueError(
                f"{self.name} takes the arguments [{names}], and {len(self.arguments)} are given"
            )
        return self

    def as_mlx_lm(self) -> dict[str, Any]:
        """Return it as mlx-lm's YAML has it."""
        return self.model_dump() | {"arguments": list(self.arguments)}
