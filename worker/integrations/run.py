"""What the sending process is told: one run, then its metrics, one JSON document a line."""

from typing import Any, Literal

from pydantic import BaseModel


class Run(BaseModel):
    """The first line. ``job`` is the run's id at each service: a further attempt goes on in it."""

    services: tuple[str, ...]
    job: str
    attempt: int
    name: str
    project: str
    url: str
    config: dict[str, Any]
    directory: str


class Point(BaseModel):
    """Metrics of a step; ``time`` in seconds since 1970."""

    step: int
    values: dict[str, float]
    time: float


class End(BaseModel):
    """The last line. A hang-up without one means that the attempt did not finish."""

    state: Literal["finished", "failed", "killed"]
