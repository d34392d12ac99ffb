"""Data sets: what is in them, and whether a training would stumble over it.

A data set is a folder with ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``, in one of mlx-lm's
formats (``mlx_lm/tuner/datasets.py``): ``text``, ``prompt`` with ``completion``, or ``messages``,
with ``tools`` beside them or not. Every line is read here once, before anything is published, so
that a job never ends after an hour at a line that could have been refused. Pure; files are read
line by line.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import Any, BinaryIO

from espalier.errors import InvalidInput
from espalier.splits import SPLITS
from scheduler.contents.rows import FEATURES, Fault, Row, detect, faults, parse, text_of

#: Faults that are told at once.
MAX_FAULTS = 20
#: Bytes of one line; the longest context of today's models is far below.
MAX_LINE = 16 << 20
FIRST_ROWS = 5
BINS = 24

Opener = Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many rows are how long: ``counts[i]`` of them in ``edges[i] <= length < edges[i+1]``."""

    unit: str  # characters, tokens
    edges: tuple[int, ...]
    counts: tuple[int, ...]
    median: int
    p95: int
    longest: int


@dataclass(frozen=True, slots=True)
class Split:
    """One file. ``sha256`` is of its bytes."""

    rows: int
    characters: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a data set holds. ``format`` is text, completions, chat or tools."""

    format: str
    features: dict[str, str]  # mlx-lm's ``*_feature`` keys, where they are not the usual ones
    splits: dict[str, Split]
    lengths: Histogram  # of the first split
    first: list[Row]  # of the first split, long texts cut
    notes: list[str]  # what a person should know

    def as_meta(self) -> dict[str, Any]:
        """Return it as plain JSON, for the version's meta."""
        return asdict(self)


def check(files: Mapping[str, Opener], features: object = None) -> DatasetReport:
    """Read every line of the data set's files and return what they hold.

    ``files`` maps path to a function that opens it for reading bytes; ``features``, as somebody
    typed them, are mlx-lm's ``prompt_feature``, ``completion_feature``, ``text_feature`` and
    ``chat_feature``. Raises
    InvalidInput with up to MAX_FAULTS errors, each ``{loc: [file, line, column], msg}``.
    """
    reading = _Reading(_features(features))
    _check_names(files, reading)
    for split in SPLITS:
        if f"{split}.jsonl" in files:
            with files[f"{split}.jsonl"]() as file:
                reading.take(split, file)
    reading.refuse_faults()
    return reading.report()


def _features(given: object) -> dict[str, str]:
    """Return mlx-lm's features with their defaults; raise InvalidInput for anything else."""
    if given is None:
        return FEATURES
    if not isinstance(given, dict) or not all(
        key in FEATURES and isinstance(name, str) for key, name in given.items()
    ):
        raise InvalidInput(
            f"features must map some of {', '.join(FEATURES)} to a key of the rows.",
            errors=[{"loc": ["meta", "features"], "msg": "must map features to keys"}],
        )
    return {**FEATURES, **given}


def _check_names(files: Mapping[str, Opener], reading: "_Reading") -> None:
    wanted = [f"{split}.jsonl" for split in SPLITS]
    for path in sorted(files):
        name = path.rsplit("/", 1)[-1]
        if path not in wanted and name.endswith((".jsonl", ".json", ".csv", ".parquet")):
            near = "".join(get_close_matches(name, wanted, 1, 0.5)) or "train.jsonl"
            reading.add(path, 0, 0, f"it would not be read: the data is in {near}, at the top")
    if not {"train.jsonl", "test.jsonl"} & files.keys():
        reading.add("train.jsonl", 0, 0, "missing: train on train.jsonl, or evaluate on test.jsonl")


@dataclass
class _Reading:
    """What was read so far."""

    features: dict[str, str]
    format: str | None = None
    tools: bool = False
    splits: dict[str, Split] = field(default_factory=dict)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    first: dict[str, list[Row]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, file: str, line: int, column: int, message: str) -> None:
        self.errors.append({"loc": [file, line, column], "msg": message})
        if len(self.errors) == MAX_FAULTS:
            self.refuse_faults()

    def take(self, split: str, file: BinaryIO) -> None:
        name, digest, rows = f"{split}.jsonl", hashlib.sha256(), 0
        lengths: Counter[int] = Counter()
        first: list[Row] = []
        for number, line in _lines(file):
            rows += 1
            digest.update(line or b"")
            try:
                row = parse(line, number, MAX_LINE)
                length = self._judge(row)
            except Fault as fault:
                self.add(name, number, fault.column(line), fault.message)
                continue
            lengths[length] += 1
            if len(first) < FIRST_ROWS:
                first.append(_cut(row))
        if not rows:
            self.add(name, 1, 1, "it has no rows: put rows into it, or leave the file out")
        total = sum(length * count for length, count in lengths.items())
        self.splits[split] = Split(rows, total, digest.hexdigest())
        self.lengths[split], self.first[split] = lengths, first

    def _judge(self, row: Row) -> int:
        """Return the row's characters; raise Fault if it is of another format or says nothing."""
        self.format = self.format or detect(row, self.features)
        for fault in faults(row, self.format, self.features):
            raise fault
        self.tools = self.tools or (self.format != "text" and bool(row.get("tools")))
        return len(text_of(row, self.format, self.features))

    def refuse_faults(self) -> None:
        if not self.errors:
            return
        (file, line, column), message = self.errors[0]["loc"], self.errors[0]["msg"]
        where = f"{file} line {line}, column {column}" if line else file
        count = len(self.errors)
        more = "" if count == 1 else f" (and {'at least ' * (count == MAX_FAULTS)}{count - 1} more)"
        raise InvalidInput(
            f"{where}: {message}{more}.",
            hint="Mend the lines and upload the data set again. Nothing was published.",
            errors=self.errors,
        )

    def report(self) -> DatasetReport:
        main = next(iter(self.splits))
        return DatasetReport(
            format="tools" if self.tools else str(self.format),
            features={k: v for k, v in self.features.items() if FEATURES[k] != v},
            splits=self.splits,
            lengths=histogram(self.lengths[main], "characters"),
            first=self.first[main],
            notes=[note for split, note in _NOTES.items() if split not in self.splits],
        )


_NOTES = {
    "train": "Without train.jsonl it can be evaluated on, not trained on.",
    "valid": "Without valid.jsonl a training shows no validation loss.",
    "test": "Without test.jsonl an evaluation has to name another split.",
}


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number, line), from 1; None for a line that is too long, which is never held."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) <= MAX_LINE:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(1 << 20)
        yield number, None


def _cut(value: Any) -> Any:
    """Return a row for people to look at: long texts and lists cut."""
    if isinstance(value, str):
        return value if len(value) <= 400 else f"{value[:400]}…"
    if isinstance(value, list):
        return [_cut(item) for item in value[:12]]
    if isinstance(value, dict):
        return {key[:100]: _cut(item) for key, item in islice(value.items(), 24)}
    return value


# --- Lengths ------------------------------------------------------------------------------


def histogram(lengths: Counter[int], unit: str) -> Histogram:
    """Return BINS bins of equal width from 0 to the longest, whole numbers wide."""
    longest = max(lengths, default=0)
    width = longest // BINS + 1
    counts = Counter({0: 0})
    for length, count in lengths.items():
        counts[length // width] += count
    bins = max(counts) + 1
    return Histogram(
        unit=unit,
        edges=tuple(width * i for i in range(bins + 1)),
        counts=tuple(counts[i] for i in range(bins)),
        median=_quantile(lengths, 0.5),
        p95=_quantile(lengths, 0.95),
        longest=longest,
    )


def _quantile(lengths: Counter[int], fraction: float) -> int:
    """Return the smallest length that at least ``fraction`` of the rows do not exceed."""
    seen, wanted = 0, fraction * lengths.total()
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= wanted:
            return length
    return 0


def token_lengths(
    rows: Iterable[Row], tokenizer: bytes, features: Mapping[str, str] | None = None
) -> Histogram:
    """Return how many tokens the rows' texts have, by a model's ``tokenizer.json``.

    A chat template's own tokens are not counted. Raises InvalidInput for a tokenizer that cannot
    be read.
    """
    from tokenizers import Tokenizer

    try:
        encoder = Tokenizer.from_buffer(tokenizer)
    except Exception as error:  # tokenizers raises no narrower class
        raise InvalidInput(f"tokenizer.json cannot be read: {error}.") from error
    names, lengths = _features(features), Counter[int]()
    texts = (text_of(row, detect(row, names), names) for row in rows)
    while batch := list(islice(texts, 256)):
        encoded = encoder.encode_batch(batch, add_special_tokens=False)
        lengths.update(len(one.ids) for one in encoded)
    return histogram(lengths, "tokens")
