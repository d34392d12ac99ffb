"""How values are written for people, the same on pages, in reports and in a terminal."""

from typing import Any

#: Metric → what a person calls it, in the order shown.
METRICS = {
    "train_loss": "train loss",
    "val_loss": "validation loss",
    "best_val_loss": "best validation loss",
    "test_loss": "test loss",
    "perplexity": "perplexity",
    "base_perplexity": "base perplexity",
    "best_step": "best step",
    "token_match": "tokens matched",
    "bits_per_weight": "bits per weight",
    "tokens_per_second": "tokens/s",
    "tokens": "tokens",
}
#: Table → its title, where its name alone would not do.
TABLES = {
    "checkpoints": "Every checkpoint",
    "data": "The data",
    "fuse": "Before and after fusing",
    "quantize": "Before and after quantizing",
    "variants": "Every variant",
    "engines": "MLX and llama.cpp side by side",
    "metrics": "What it generates",
}


def duration(seconds: float | None) -> str:
    """Return "4.2 s", "3 min 20 s", "2 h 5 min"."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(value: float | None) -> str:
    """Return bytes as "512 B", "3.4 MiB", "21.3 GiB"."""
    if value is None:
        return "–"
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return (
                f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
            )
        amount /= 1024
    return f"{amount:.1f} TiB"


def number(value: Any) -> str:
    """Return a number with the digits that matter; anything else as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        whole = int(value)
        return f"{whole:,}".replace(",", "\u202f") if abs(whole) >= 10_000 else str(whole)
    if isinstance(value, float):
        small = 0 < abs(value) < 0.001
        return f"{value:.2e}" if small else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def cell(value: Any, column: str) -> str:
    """Return a table's cell: bytes by their column's name, numbers in one width."""
    if "bytes" in column and value is not None:
        return size(value)
    if isinstance(value, float) and 0.001 <= abs(value) < 10:
        return f"{value:.4f}"
    return number(value)


def heading(column: str) -> str:
    """Return a column's name as words: ``tokens_per_second`` is "tokens/s"."""
    for suffix, words in (("_bytes", ""), ("_per_second", "/s"), ("_per_", "/"), ("_", " ")):
        column = column.replace(suffix, words)
    return column


def title(table: str) -> str:
    """Return what a table is called."""
    return TABLES.get(table) or table.replace("_", " ").capitalize()
