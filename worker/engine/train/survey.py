"""What there is to learn from: every split tokenized once, counted, and compared with the others.

Rows are the same when their tokens are. What matters is said before the first step: rows that are
cut, rows that repeat, and rows of one split that are in another, whose loss is then no measure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from mlx_lm.tuner.datasets import CacheDataset

from worker.engine.data import Row, check_targets, target_tokens
from worker.engine.report import Cell, Job
from worker.engine.train.encode import encode

#: The columns of the table "data". Tokens are counted before a row is cut, targets after.
COLUMNS = (
    *("split", "rows", "tokens", "target_tokens", "longest_row", "median_row"),
    *("truncated_rows", "tokens_lost", "duplicates", "in_other_splits"),
)
#: Rows that are tokenized together, between two looks at whether the job is cancelled.
_CHUNK = 1000


class Tokenized(CacheDataset):  # type: ignore[misc]
    """A split whose rows are all tokens: int32, a tenth of the memory of Python's integers.

    ``itemlen`` stays mlx-lm's, which sorts by it: the number of a row's keys.
    """

    def __init__(self, name: str, dataset: Any, look: Callable[[], None]) -> None:
        """Tokenize a CacheDataset, which may be let go then; ``look`` is called now and then.

        Raises BadInput naming the split and the line of a row that cannot be.
        """
        self._sizes: list[int] = [dataset.itemlen(index) for index in range(len(dataset))]
        self._rows: list[Row] = []
        raw = dataset._data  # not through its cache, which would keep the integers, too
        for first in range(0, len(raw), _CHUNK):
            look()
            rows = encode(name, raw, first, min(_CHUNK, len(raw) - first))
            self._rows += [(np.array(tokens, np.int32), offset) for tokens, offset in rows]

    def itemlen(self, idx: int) -> int:
        return self._sizes[idx]

    def __getitem__(self, idx: int) -> Row:
        return self._rows[idx]

    def __len__(self) -> int:
        return len(self._rows)


@dataclass(frozen=True, slots=True)
class Split:
    """What was counted in one split; ``digests`` are its different rows."""

    rows: int
    tokens: int
    targets: int
    longest: int
    median: int
    truncated: int
    lost: int
    digests: frozenset[bytes]

    @classmethod
    def of(cls, dataset: Any, max_seq_length: int) -> "Split":
        rows = [dataset[index] for index in range(len(dataset))]
        lengths = np.array([len(tokens) for tokens, _ in rows])
        over = np.maximum(lengths - max_seq_length, 0)
        return cls(
            rows=len(rows),
            tokens=int(lengths.sum()),
            targets=target_tokens(rows, max_seq_length),
            longest=int(lengths.max()),
            median=int(np.median(lengths)),
            truncated=int((over > 0).sum()),
            lost=int(over.sum()),
            digests=frozenset(map(_digest, rows)),
        )


def _digest(row: Row) -> bytes:
    return blake2b(np.asarray(row[0], np.int32).tobytes(), digest_size=16).digest()


def read(job: Job, splits: Mapping[str, Any], max_seq_length: int) -> dict[str, Tokenized]:
    """Tokenize all splits; report the table "data", and in words what matters of it.

    Raises BadInput for a row that leaves nothing to learn, and Cancelled.
    """
    job.report.phase("reading the data")
    found = {name: Tokenized(name, dataset, job.orders.check) for name, dataset in splits.items()}
    for name, dataset in found.items():
        check_targets(name, dataset, max_seq_length)
    counted = {name: Split.of(dataset, max_seq_length) for name, dataset in found.items()}
    repeated = {
        name: {other: _shared(found[name], counted[other]) for other in counted if other != name}
        for name in counted
    }
    job.report.table(
        "data",
        COLUMNS,
        [_line(name, split, repeated[name].values()) for name, split in counted.items()],
    )
    if not job.task.resume_dir:
        for name, split in counted.items():
            _tell(job, name, split, repeated[name], max_seq_length)
    return found


def _shared(dataset: Tokenized, other: Split) -> frozenset[int]:
    """Return the numbers of the rows that are in another split, too."""
    return frozenset(
        index for index in range(len(dataset)) if _digest(dataset[index]) in other.digests
    )


def _line(name: str, split: Split, repeated: Any) -> list[Cell]:
    elsewhere = frozenset().union(*repeated)
    return [
        *(name, split.rows, split.tokens, split.targets, split.longest, split.median),
        *(split.truncated, split.lost, split.rows - len(split.digests), len(elsewhere)),
    ]


def _tell(
    job: Job, name: str, split: Split, repeated: Mapping[str, frozenset[int]], limit: int
) -> None:
    tell = job.report.notice
    if split.truncated:
        tell(
            f"{split.truncated:,} of {split.rows:,} rows of {name} are longer than max_seq_length"
            f" {limit} and are cut: {split.lost:,} tokens ({split.lost / split.tokens:.1%}) are"
            f" left out. The longest has {split.longest:,}.",
            "warning",
        )
    if (leaked := repeated.get("train")) and name != "train":
        tell(
            f"{len(leaked):,} of {split.rows:,} rows of {name} are in train, too: what is measured"
            f" on {name} is partly remembered, not learnt.",
            "warning",
        )
    if twice := split.rows - len(split.digests):
        tell(f"{twice:,} of {split.rows:,} rows of {name} repeat another row of it.")
