"""What the specs of all kinds share: strictness, and how much is computed at once."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


def numbered(role: str, number: int) -> str:
    """Return the role of the ``number``-th input of its kind: data, data_2, data_3."""
    return role if number == 1 else f"{role}_{number}"


def plain_role(role: str) -> str:
    """Return a role without its number: what kind of thing the input is."""
    name, _, number = role.rpartition("_")
    return name if name and number.isdigit() else role


class Frozen(BaseModel):
    """Immutable, and strict about keys: a misspelt flag is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


#: Rows of a batch that are computed together. It need not divide the batch: the last part is
#: smaller. More than the batch is the whole batch.
MicroBatch = Annotated[
    int | None,
    Field(ge=1, le=4096, description="rows computed at once; a batch is the sum of its parts"),
]
OnOom = Annotated[
    Literal["adapt", "fail"],
    Field(description="out of memory: hold less at once, same result; or fail"),
]
