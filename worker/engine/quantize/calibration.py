"""Text that learned methods learn from: rows of a data set of the store, never fetched elsewhere.

mlx-lm's own modules download a text and a data set from the internet; their functions take tokens,
and get these.
"""

from itertools import chain
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from espalier.specs.recipes import Recipe
from worker.engine import data
from worker.engine.report import BadInput, Job

#: Rows that DWQ watches its own progress on, as mlx-lm has them.
_VALID_ROWS = 32


class Calibration:
    """A data set's rows as tokens, drawn in an order that the seed decides."""

    def __init__(self, dataset: Any, source: str, seed: int) -> None:
        self._dataset = dataset
        self.source = source
        self._order = np.random.default_rng(seed).permutation(len(dataset)).tolist()

    def _tokens(self, index: int) -> list[int]:
        tokens: list[int] = list(self._dataset[index][0])
        return tokens

    def pieces(self, recipe: Recipe) -> Any:
        """Return tokens [pieces, length]: rows one after another, cut at ``sequence_length``.

        Raises BadInput when there is not enough text for one piece.
        """
        length, wanted = recipe.length, recipe.samples
        found: list[list[int]] = []
        count = 0
        for index in self._order:
            found.append(self._tokens(index))
            count += len(found[-1])
            if 0 <= length * wanted <= count:
                break
        pieces = count // length if wanted < 0 else min(count // length, wanted)
        if not pieces:
            raise BadInput(
                f"{self.source}: its {count} tokens are not one piece of sequence_length {length}.",
                "Name a larger data set as calibration, or a shorter sequence_length.",
            )
        flat = list(chain.from_iterable(found))[: pieces * length]
        return mx.array(flat).reshape(pieces, length)

    def rows(self, recipe: Recipe, batch_size: int) -> tuple[list[data.Row], list[data.Row]]:
        """Return rows to learn from and rows to watch, each (tokens, 0) and no longer than asked.

        Raises BadInput when they do not fill a batch each.
        """
        valid = min(_VALID_ROWS, max(len(self._order) // 10, batch_size))
        train = len(self._order) - valid
        if recipe.samples > 0:
            train = min(train, recipe.samples)
        if train < batch_size:
            raise BadInput(
                f"{self.source}: dwq needs a batch of {batch_size} to learn from and one to watch.",
                "Name a larger data set as calibration, or a smaller batch_size.",
            )
        chosen = [(self._tokens(i)[: recipe.length], 0) for i in self._order[: train + valid]]
        return chosen[:train], chosen[train:]


def open_calibration(job: Job, tokenizer: Any, seed: int) -> Calibration:
    """Open the calibration data set, or the train split of the job's data.

    Raises BadInput when there is neither: what is measured on must not be learnt from.
    """
    directory = job.input("calibration")
    splits = ("train", "valid", "test") if directory else ("train",)
    directory = directory or job.input("data")
    found = _first(directory, splits, tokenizer) if directory else None
    if found is None:
        raise BadInput(
            "There is no calibration text: the job names no calibration, and its data has no train"
            " split (valid and test are what the result is measured on).",
            "Name a data set as calibration.",
        )
    dataset, split = found
    where = "the calibration set" if job.input("calibration") else "the data"
    return Calibration(dataset, f"{split}.jsonl of {where} ({len(dataset)} rows)", seed)


def _first(directory: Path, splits: tuple[str, ...], tokenizer: Any) -> tuple[Any, str] | None:
    for split in splits:
        dataset = data.open_split(directory, split, tokenizer)
        if dataset is not None:
            return dataset, split
    return None
