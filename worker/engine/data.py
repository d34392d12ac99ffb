"""Data sets: read and checked whole before a step is taken, and drawn in mlx-lm's own order."""

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mlx_lm.tuner.datasets import (
    CacheDataset,
    ChatDataset,
    CompletionsDataset,
    TextDataset,
    create_dataset,
)
from mlx_lm.tuner.trainer import iterate_batches

from espalier.specs import FEATURES, EvalSpec, TrainSpec
from worker.engine.report import BadInput

#: A row of a data set: its tokens (a list, or an array of int32), and where what is to be learnt
#: begins.
Row = tuple[Any, int]


def read_rows(directory: Path, split: str) -> list[dict[str, Any]] | None:
    """Return the rows of ``<split>.jsonl``, or None without such a file.

    Raises BadInput naming file and line for a line that is no JSON object, and for an empty file.
    """
    path = directory / f"{split}.jsonl"
    if not path.is_file():
        return None
    rows = []
    with path.open(encoding="utf-8", errors="strict") as lines:
        try:
            for number, line in enumerate(lines, 1):
                rows.append(_row(path.name, number, line))
        except UnicodeDecodeError as error:
            raise BadInput(f"{path.name} is not UTF-8 text: {error}.") from error
    if not rows:
        raise BadInput(
            f"{path.name} has no rows.", "Put rows into it, or leave the file out of the data set."
        )
    return rows


def _row(name: str, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadInput(
            f"{name} line {number} is not JSON: {error}.", "Write one JSON object per line."
        ) from error
    if not isinstance(row, dict):
        raise BadInput(f"{name} line {number} is not a JSON object: {line.strip():.80}")
    return row


def open_split(
    directory: Path, split: str, tokenizer: Any, spec: TrainSpec | EvalSpec | None = None
) -> Any | None:
    """Return a split as mlx-lm's CacheDataset, checked, or None without such a file.

    The format is mlx-lm's: found from the first row (prompt and completion, messages, text).
    Raises BadInput naming file and line for a row of another format.
    """
    rows = read_rows(directory, split)
    if rows is None:
        return None
    masked = bool(spec and spec.mask_prompt)
    return CacheDataset(checked(f"{split}.jsonl", rows, tokenizer, spec, masked))


def checked(
    name: str, rows: list[dict[str, Any]], tokenizer: Any, features: Any, mask_prompt: bool
) -> Any:
    """Return rows as mlx-lm's data set of their format; ``features`` may have its four keys.

    Raises BadInput with ``name`` (of the file) and line.
    """
    config = types.SimpleNamespace(mask_prompt=mask_prompt)
    for key in FEATURES:
        if value := getattr(features, key, None):
            setattr(config, key, value)
    try:
        dataset = create_dataset(rows, tokenizer, config)
    except ValueError as error:
        raise BadInput(
            f"{name}: {str(error).splitlines()[0]}",
            "Rows hold text, prompt and completion, or messages; mask_prompt needs one of the"
            " latter two.",
        ) from error
    _check_rows(name, rows, dataset)
    return dataset


def _needs(dataset: Any) -> dict[str, type]:
    """The keys each row of a data set must have, and the type of their values."""
    if isinstance(dataset, TextDataset):
        return {dataset.text_key: str}
    if isinstance(dataset, CompletionsDataset):
        return {dataset.prompt_key: str, dataset.completion_key: str}
    if isinstance(dataset, ChatDataset):
        return {dataset.chat_key: list}
    return {}


def _check_rows(name: str, rows: list[dict[str, Any]], dataset: Any) -> None:
    if not isinstance(dataset, TextDataset) and not dataset.tokenizer.chat_template:
        raise BadInput(
            f"{name} holds conversations, and the model's tokenizer has no chat template.",
            "Use an instruction-tuned model, or rows with text.",
        )
    needs = _needs(dataset)
    for number, row in enumerate(rows, 1):
        for key, kind in needs.items():
            if not isinstance(row.get(key), kind) or not row[key]:
                found = "is missing" if key not in row else f"is {row[key]!r:.40}"
                raise BadInput(
                    f"{name} line {number}: {key} {found}. The first row says that every row has"
                    f" {' and '.join(needs)}.",
                    "Make all rows of one format.",
                )


def check_size(name: str, dataset: Any, batch_size: int) -> None:
    """Raise BadInput when a split cannot fill one batch."""
    if len(dataset) < batch_size:
        raise BadInput(
            f"{name}.jsonl has {len(dataset)} rows, fewer than batch_size {batch_size}.",
            f"Set batch_size to {len(dataset)} or less, or add rows.",
        )


def check_targets(name: str, dataset: Any, max_seq_length: int) -> None:
    """Raise BadInput for a row that leaves nothing to learn: its loss would be 0/0, NaN.

    That is a row whose prompt alone fills ``max_seq_length`` under mask_prompt, or one of a
    single token. Tokenizes the whole split; the tokens are kept for training.
    """
    empty = [i for i in range(len(dataset)) if not _has_target(dataset[i], max_seq_length)]
    if not empty:
        return
    tokens, offset = dataset[empty[0]]
    others = f" So do {len(empty) - 1} more of {len(dataset)} rows" if empty[1:] else ""
    lines = ", ".join(str(index + 1) for index in empty[1:6]) + (", …" if empty[6:] else "")
    raise BadInput(
        f"{name}.jsonl line {empty[0] + 1} leaves no target token: its prompt has {offset} of"
        f" {len(tokens)} tokens, and max_seq_length is {max_seq_length}."
        + (f"{others} (lines {lines})." if others else ""),
        "Raise max_seq_length, shorten the prompt or drop the row.",
    )


def _has_target(row: Row, max_seq_length: int) -> bool:
    """Token i predicts token i + 1, and mlx-lm masks targets at positions below the offset."""
    tokens, offset = row
    return min(len(tokens), max_seq_length) - 1 >= max(offset, 1)


class Rows:
    """Rows that are tokens already, in the shape mlx-lm's CacheDataset wraps."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def process(self, row: Row) -> Row:
        return row


def split(rows: list[Any], size: int | None) -> list[list[Any]]:
    """Cut a batch into parts of ``size`` rows (or packs), in its order; the last may be smaller."""
    size = size or len(rows)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def padded(rows: list[Row], max_seq_length: int) -> Any:
    """Return rows as mlx-lm's ``(tokens [rows, T], spans [rows, 2])``.

    T is the longest of these rows, on to the next multiple of 32 and one more. A part of a batch
    is as long as its own longest row: what pads a row takes no part in its loss, and costs.
    """
    return next(iterate_batches(CacheDataset(Rows(rows)), len(rows), max_seq_length))


def target_tokens(rows: list[Row], max_seq_length: int) -> int:
    """How many tokens mlx-lm's loss counts in these rows, whatever they are padded to.

    From a row's offset, or its second token, to the padding token behind it; a row that fills
    ``max_seq_length`` has none behind it.
    """
    ends = ((min(len(tokens), max_seq_length - 1), offset) for tokens, offset in rows)
    return sum(max(end - max(offset, 1) + 1, 0) for end, offset in ends)


def cut(row: Row, max_seq_length: int) -> Row:
    """Return a row as long as mlx-lm trains on it."""
    tokens, offset = row
    return tokens[:max_seq_length], offset


class Batches:
    """mlx-lm's ``iterate_batches`` with a generator of its own that can be saved and restored.

    mlx-lm draws the order of batches, in training and in each validation, from numpy's global
    generator. The same draws are made here in the same order from a private one, so the batches
    are those of ``mlx_lm.lora``; and generator, permutation and position are one checkpoint's
    worth of state.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.RandomState(seed)
        self.order: Any = np.zeros(0, np.int64)
        self.position = 0

    def rows(
        self, dataset: Any, batch_size: int, max_seq_length: int, loop: bool = False
    ) -> Iterator[list[Row]]:
        """Yield the rows of each batch, cut to ``max_seq_length``; for ever with ``loop``."""
        groups = _groups(dataset, batch_size)
        draws = self._draw(len(groups)) if loop else iter(self.rng.permutation(len(groups)))
        for drawn in draws:
            yield [cut(dataset[i], max_seq_length) for i in groups[drawn]]

    def _draw(self, count: int) -> Iterator[int]:
        while True:
            if self.position >= len(self.order):
                self.order, self.position = self.rng.permutation(count), 0
            self.position += 1
            yield int(self.order[self.position - 1])

    def validating(self) -> "Batches":
        """Return what a validation draws from: as in mlx-lm, from the same generator."""
        return self

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` needs: arrays of integers, and scalars."""
        _, keys, position, has_gauss, gauss = self.rng.get_state()
        return {
            "arrays": {"keys": keys, "order": self.order.astype(np.int64)},
            "scalars": {
                "rng": [int(position), int(has_gauss), float(gauss)],
                "position": self.position,
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        arrays, scalars = state["arrays"], state["scalars"]
        position, has_gauss, gauss = scalars["rng"]
        self.rng.set_state(("MT19937", arrays["keys"], position, has_gauss, gauss))
        self.order = arrays["order"]
        self.position = scalars["position"]


def _groups(dataset: Any, batch_size: int) -> list[list[int]]:
    """Row numbers by batch, sorted as mlx-lm sorts them; what does not fill a batch is left out."""
    order = sorted(range(len(dataset)), key=dataset.itemlen)
    last = len(order) - batch_size + 1
    return [order[i : i + batch_size] for i in range(0, last, batch_size)]
