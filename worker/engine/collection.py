"""mlx-lm's ``hf_dataset`` over data sets of the store: rows of several, under keys of their own.

Each entry's rows are those of its split (``train[:80%]``), in its order; several entries follow
one another, as in mlx-lm's ``ConcatenatedDataset``.
"""

from typing import Any

from mlx_lm.tuner.datasets import CacheDataset, ConcatenatedDataset

from espalier.specs import HubData, TrainSpec, numbered
from espalier.specs.collection import parts
from worker.engine import data
from worker.engine.report import BadInput, Job


def open_data(job: Job, split: str, tokenizer: Any, spec: TrainSpec) -> Any | None:
    """Return train, valid or test of a job's data as mlx-lm's CacheDataset; None without rows.

    Raises BadInput naming data set, file and line.
    """
    if not spec.hf_dataset:
        return data.open_split(job.need("data"), split, tokenizer, spec)
    found = [
        dataset
        for number, item in enumerate(spec.hf_dataset, 1)
        if (dataset := _entry(job, number, item, split, tokenizer, spec.mask_prompt)) is not None
    ]
    if not found:
        return None
    return CacheDataset(found[0] if len(found) == 1 else ConcatenatedDataset(found))


def _entry(
    job: Job, number: int, item: HubData, split: str, tokenizer: Any, mask_prompt: bool
) -> Any | None:
    """Return one entry's rows as mlx-lm's data set, or None when it names no such split."""
    text = item.split(split)
    if text is None:
        return None
    directory = job.need(numbered("data", number))
    rows: list[dict[str, Any]] = []
    for part in parts(text):
        read = data.read_rows(directory, part.split)
        if read is None:
            raise BadInput(
                f"{item.path} has no {part.split}.jsonl, and {split}_split is {text!r}.",
                f"Name another split in hf_dataset, or push one with {part.split}.jsonl.",
            )
        rows += [read[row] for row in part.rows(len(read))]
    if not rows:
        raise BadInput(
            f"{item.path}: {split}_split {text!r} has no rows.", "Widen it in hf_dataset."
        )
    return data.checked(f"{item.path} {text}", rows, tokenizer, item, mask_prompt)
