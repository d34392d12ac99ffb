"""A seeded text-to-SQL data set in WikiSQL's format, for the demo and for trying things out.

Each row is ``{"text": "table: …\\ncolumns: …\\nQ: …\\nA: SELECT …"}``, as the LoRA example of
mlx-examples ships WikiSQL: one table, a question, and the answer as
``SELECT [aggregate] column FROM table WHERE column op 'value'``.
Pure: the same rows and seed give the same bytes on every machine.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Column:
    """A column's name and what its cells hold: names to choose from, or a range of numbers."""

    name: str
    words: tuple[str, ...] = ()
    low: int = 0
    high: int = 0

    def value(self, rng: random.Random) -> str:
        return rng.choice(self.words) if self.words else str(rng.randint(self.low, self.high))


def _names(name: str, words: str) -> _Column:
    return _Column(name, tuple(words.split(", ")))


_CITIES = "Berlin, Cairo, Delhi, Lima, London, Oslo, Paris, Quito, Rome, Tokyo"
_TEAMS = "Bears, Eagles, Falcons, Hawks, Kings, Lions, Rangers, Sharks, Tigers, Wolves"
_PEOPLE = "Adams, Baker, Clark, Davis, Evans, Garcia, Harris, Jones, Lopez, Moore, Smith, Young"
_SUBJECTS: tuple[tuple[_Column, ...], ...] = (
    (
        _names("Player", _PEOPLE),
        _names("Team", _TEAMS),
        _names("Position", "Guard, Forward, Center, Keeper, Winger"),
        _Column("Points", low=1, high=60),
        _Column("Season", low=1990, high=2024),
    ),
    (
        _names("City", _CITIES),
        _names("Country", "Brazil, Egypt, France, India, Japan, Norway, Peru, Spain"),
        _Column("Population", low=100, high=900),
        _Column("Founded", low=1100, high=1950),
        _names("Mayor", _PEOPLE),
    ),
    (
        _names("Airline", "Aurora, Condor, Delta, Nordic, Pacific, Polar, Silver"),
        _names("Origin", _CITIES),
        _names("Destination", _CITIES),
        _Column("Price", low=40, high=900),
        _Column("Distance", low=200, high=9000),
    ),
    (
        _names("Employee", _PEOPLE),
        _names("Department", "Design, Finance, Legal, Research, Sales, Support"),
        _Column("Salary", low=30, high=200),
        _Column("Age", low=20, high=65),
        _names("Office", _CITIES),
    ),
    (
        _names("Title", "Dawn, Ember, Harbor, Island, Meadow, Mirror, Storm, Winter"),
        _names("Director", _PEOPLE),
        _Column("Year", low=1950, high=2024),
        _Column("Rating", low=1, high=10),
        _names("Genre", "Comedy, Crime, Drama, Fantasy, History, Western"),
    ),
)
_AGGREGATES = {
    "COUNT": "How many {column} values are there",
    "MAX": "What is the highest {column}",
    "MIN": "What is the lowest {column}",
    "AVG": "What is the average {column}",
    "SUM": "What is the total {column}",
}


def _row(rng: random.Random) -> str:
    columns = rng.choice(_SUBJECTS)
    table = f"1-{rng.randint(1000, 1099)}-{rng.randint(1, 9)}"
    asked, given = rng.sample(columns, 2)
    operator, phrase = "=", "is"
    if not given.words and rng.random() < 0.5:
        operator, phrase = rng.choice(((">", "is more than"), ("<", "is less than")))
    value = given.value(rng)
    wanted, question = asked.name, f"What is the {asked.name.lower()}"
    if rng.random() < 0.4:
        aggregate = "COUNT" if asked.words else rng.choice(tuple(_AGGREGATES))
        wanted = f"{aggregate} {asked.name}"
        question = _AGGREGATES[aggregate].format(column=asked.name.lower())
    where = f"{given.name} {operator} '{value}'"
    return "\n".join(
        (
            f"table: {table}",
            f"columns: {', '.join(column.name for column in columns)}",
            f"Q: {question} when {given.name.lower()} {phrase} {value}?",
            " ".join(("A: SELECT", wanted, "FROM", table, "WHERE", where)),
        )
    )


def texts(seed: int) -> Iterator[str]:
    """Yield distinct rows without end, the same for the same ``seed``."""
    rng = random.Random(seed)  # noqa: S311
    seen: set[str] = set()
    while True:
        text = _row(rng)
        if text not in seen:
            seen.add(text)
            yield text


def write_dataset(directory: Path, rows: int = 1000, seed: int = 0) -> dict[str, int]:
    """Write ``train.jsonl`` (``rows``), ``valid.jsonl`` and ``test.jsonl`` (a tenth, 32 at least).

    No row is in two splits. Returns rows by split. Raises ValueError for less than one row.
    """
    if not 1 <= rows <= 100_000:
        raise ValueError(f"rows is {rows}: choose 1 to 100000, which the generator keeps distinct")
    held_out = max(rows // 10, 32)
    sizes = {"train": rows, "valid": held_out, "test": held_out}
    source = texts(seed)
    directory.mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        lines = (json.dumps({"text": next(source)}) + "\n" for _ in range(size))
        (directory / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return sizes
