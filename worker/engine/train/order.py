"""In which order rows are trained on: by seed and epoch, whatever else the run does.

mlx-lm draws batches, in training and in each validation, from one generator, so that another
``steps_per_eval`` trains on other batches; and it forms them from neighbours in the file, always
the same. Here an epoch is a permutation of the rows, made of (seed, epoch) alone: a checkpoint
holds two numbers, and any epoch can be drawn again. ``order: mlx-lm`` is upstream's
(worker.engine.data.Batches).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from worker.engine.data import Batches, cut
from worker.engine.train.packing import pack, room

#: Batches whose rows are sorted by length together: enough to find rows alike, few enough for an
#: epoch to stay mixed.
WINDOW = 50


def epoch(
    seed: int, number: int, lengths: Sequence[int], batch_size: int, *, bucketed: bool
) -> Any:
    """Return the batches of one epoch: row numbers, [batches, batch_size].

    Shuffled; with ``bucketed``, rows of like length then share a batch, and the batches are
    shuffled. What does not fill the last batch is left out, other rows in every epoch.
    """
    rng = np.random.RandomState([seed, number])
    rows = rng.permutation(len(lengths))
    if bucketed:
        size = WINDOW * batch_size
        by_length = [
            sorted(rows[i : i + size], key=lambda row: lengths[row])
            for i in range(0, len(rows), size)
        ]
        rows = np.array([row for window in by_length for row in window], np.int64)
    whole = len(rows) // batch_size
    batches = rows[: whole * batch_size].reshape(whole, batch_size)
    return rng.permutation(batches) if bucketed else batches


class Epochs(Batches):
    """Training batches by (seed, epoch); ``capacity`` tokens a pack, or rows as they are.

    What validation and test draw is not drawn from it.
    """

    def __init__(self, seed: int, *, bucketed: bool = False, capacity: int | None = None) -> None:
        super().__init__(seed)
        self._seed = seed
        self._bucketed = bucketed
        self._capacity = capacity
        self._epoch = 0

    def rows(
        self, dataset: Any, batch_size: int, max_seq_length: int, loop: bool = False
    ) -> Iterator[list[Any]]:
        """Yield the rows, or the packs, of each batch; for ever with ``loop``."""
        lengths = [room(len(dataset[i][0]), max_seq_length) for i in range(len(dataset))]
        while True:
            batches = self._batches(lengths, batch_size)
            while self.position < len(batches):
                self.position += 1
                drawn = batches[self.position - 1]
                if self._capacity is None:
                    yield [cut(dataset[i], max_seq_length) for i in drawn]
                else:
                    yield [[cut(dataset[i], max_seq_length) for i in one] for one in drawn]
            self._epoch, self.position = self._epoch + 1, 0
            if not loop:
                return

    def _batches(self, lengths: Sequence[int], batch_size: int) -> Any:
        if self._capacity is None:
            return epoch(self._seed, self._epoch, lengths, batch_size, bucketed=self._bucketed)
        packs = pack(self._seed, self._epoch, lengths, self._capacity)
        whole = len(packs) // batch_size
        return [packs[i * batch_size : (i + 1) * batch_size] for i in range(whole)]

    def validating(self) -> Batches:
        """Return what a validation draws from: the same batches every time."""
        return Batches(self._seed)

    def state(self) -> dict[str, Any]:
        return {"arrays": {}, "scalars": {"epoch": self._epoch, "position": self.position}}

    def restore(self, state: dict[str, Any]) -> None:
        self._epoch, self.position = state["scalars"]["epoch"], state["scalars"]["position"]
