"""mlx-lm's ``hf_dataset``: data sets whose rows lie under keys and splits of their own.

``path`` is a reference where mlx-lm has a repository of a hub. A split is written as the library
``datasets`` has it: ``train``, ``train[:80%]``, ``train[-10%:]``, ``train[:100]+valid``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from espalier.reftypes import RefText
from espalier.specs.base import Frozen

_PART = re.compile(
    r"(?P<split>[A-Za-z]+)(?:\[(?:(?P<begin>-?\d+)(?P<begin_pct>%)?)?"
    r":(?:(?P<end>-?\d+)(?P<end_pct>%)?)?\])?"
)
#: What a data set's files are called elsewhere.
_NAMES = {"train": "train", "valid": "valid", "validation": "valid", "test": "test"}


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one split: from ``begin`` up to ``end``, percentages with ``percent``."""

    split: str
    begin: int | None = None
    end: int | None = None
    percent: bool = False

    def rows(self, count: int) -> range:
        """Return the row numbers that it takes of a split of ``count`` rows."""
        begin = 0 if self.begin is None else self._row(self.begin, count)
        end = count if self.end is None else self._row(self.end, count)
        return range(begin, max(begin, end))

    def _row(self, bound: int, count: int) -> int:
        at = round(bound * count / 100.0) if self.percent else bound
        return min(max(count + at, 0) if at < 0 else at, count)


def parts(text: str) -> tuple[Part, ...]:
    """Parse a split. Raises ValueError naming what it cannot read."""
    return tuple(_part(piece.strip()) for piece in text.split("+"))


def _part(text: str) -> Part:
    match = _PART.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a split: write train, train[:80%] or train[100:200]")
    split = _NAMES.get(match["split"])
    if split is None:
        raise ValueError(
            f"{match['split']!r} is not a split: a data set has train.jsonl, valid.jsonl and"
            " test.jsonl"
        )
    begin, end = (int(match[key]) if match[key] else None for key in ("begin", "end"))
    percent = bool(match["begin_pct"] or match["end_pct"])
    if percent and any(bound is not None and not -100 <= bound <= 100 for bound in (begin, end)):
        raise ValueError(f"{text!r}: a percentage is between -100 and 100")
    return Part(split, begin, end, percent)


def _is_split(text: str) -> str:
    parts(text)
    return text


SplitText = Annotated[str, Field(max_length=200), AfterValidator(_is_split)]


class HubData(Frozen):
    """One entry of ``hf_dataset``, with mlx-lm's defaults."""

    path: RefText
    train_split: SplitText = "train[:80%]"
    valid_split: SplitText = "train[-10%:]"
    test_split: SplitText | None = None
    prompt_feature: str | None = None
    completion_feature: str | None = None
    text_feature: str | None = None
    chat_feature: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_loader(cls, given: Any) -> Any:
        """Refuse arguments of ``datasets.load_dataset``: nothing is loaded by it here."""
        if not isinstance(given, Mapping) or "config" not in given:
            return given
        if given["config"]:
            raise ValueError(
                "config holds arguments of datasets.load_dataset, which is not used here: push the"
                " subset it names as a data set of its own and take config out"
            )
        return {key: value for key, value in given.items() if key != "config"}

    def split(self, name: str) -> str | None:
        """Return what this entry's train, valid or test rows are."""
        return {"train": self.train_split, "valid": self.valid_split, "test": self.test_split}[name]


def _listed(given: Any) -> Any:
    """mlx-lm takes one entry without a list around it."""
    return (given,) if isinstance(given, Mapping) else () if given is None else given


Collection = Annotated[
    tuple[HubData, ...],
    BeforeValidator(_listed),
    Field(max_length=32, description="data sets with keys and splits of their own"),
]
