"""mlx-lm's ``report_to``: services of others that a run's metrics are also sent to."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

#: mlx-lm's two and ours, by the names in ``report_to``.
SERVICES = {
    "wandb": "Weights & Biases",
    "swanlab": "SwanLab",
    "mlflow": "MLflow",
    "tensorboard": "TensorBoard",
}


def services(text: str | None) -> tuple[str, ...]:
    """Return the services that a ``report_to`` names, each once, in its order."""
    return tuple(dict.fromkeys(s.strip().lower() for s in (text or "").split(",") if s.strip()))


def _joined(given: Any) -> Any:
    """A list is taken as well: YAML has lists."""
    return ",".join(map(str, given)) if isinstance(given, list | tuple) else given


def _known(text: str | None) -> str | None:
    found = services(text)
    unknown = [name for name in found if name not in SERVICES]
    if unknown:
        raise ValueError(f"nothing is called {unknown[0]!r}: report_to takes {', '.join(SERVICES)}")
    return ",".join(found) or None


Services = Annotated[
    Annotated[str, Field(max_length=100)] | None,
    BeforeValidator(_joined),
    AfterValidator(_known),
    Field(description="also send metrics to wandb, swanlab, mlflow, tensorboard (comma separated)"),
]
