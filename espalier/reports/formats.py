"""The table people make by hand at the end: every format of one model, in MLX and in llama.cpp."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from espalier.figures import cell, heading, title
from espalier.reports.parts import Table

#: What a format is judged by, in the order shown, where a job measured it.
_COLUMNS = (
    "engine",
    "format",
    "bits_per_weight",
    "size_bytes",
    "test_loss",
    "perplexity",
    "increase",
    "mean_kl",
    "token_match",
    "prompt_tokens_per_second",
    "tokens_per_second",
)
#: What other tables call the same.
_SAME = {"variant": "format", "type": "format"}
_NAMES = {"mlx": "MLX"}
_FROM = {"quantize": "MLX", "variants": "MLX", "engines": None}


def formats(jobs: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return one table over all that quantize and export jobs measured; None if that is one row.

    Jobs may have measured on other text than each other: ``increase`` is the perplexity over that
    of the first row of the same job, less one, and can be compared throughout.
    """
    rows: list[dict[str, Any]] = []
    for job in jobs:
        for table in job["tables"]:
            if table["name"] in _FROM:
                rows += _rows(table)
    if len(rows) < 2 or len({row["engine"] for row in rows}) < 2:
        return None
    columns = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows)]
    return Table(
        title("formats"),
        tuple(heading(name) for name in columns),
        tuple(tuple(cell(row.get(name), name) for name in columns) for row in rows),
    )


def _rows(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    engine = _FROM[table["name"]]
    columns = [_SAME.get(column, column) for column in table["columns"]]
    first: float | None = None
    for row in table["rows"]:
        found = dict(zip(columns, row, strict=True))
        perplexity = found.get("perplexity")
        first = first or perplexity
        if first and perplexity:
            found["increase"] = f"{perplexity / first - 1:+.1%}"
        found["engine"] = _NAMES.get(found.get("engine", ""), engine or found.get("engine"))
        yield found
