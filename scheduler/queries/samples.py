"""The samples that an evaluation kept: every prompt with its reference and what models answered.

They are a file of the report (worker.engine.eval.samples tells its lines), read as it is asked for:
what is looked for is found by going through it, page by page of what was wanted.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.orm import Session

from espalier.errors import InvalidInput, NotFound
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import registry
from scheduler.contents.judging import reader
from scheduler.models import Job
from scheduler.queries import Document

Show = Literal["all", "wrong", "lost", "gained", "changed", "unjudged"]
#: What can be shown, and what that means to a person; "wrong" and the like go by one metric.
SHOWS: Mapping[Show, str] = {
    "all": "every sample",
    "wrong": "not right",
    "lost": "the base was right, the adapter is wrong",
    "gained": "the base was wrong, the adapter is right",
    "changed": "the adapter answers otherwise than the base",
    "unjudged": "the reference could not be judged by",
}
#: Bytes of a line that is read; a longer one is no sample of ours.
_LONGEST = 4 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a job's samples are."""

    sha256: str
    rows: int
    report: str  # project/name@vN


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which samples: ``metric`` None is the first; ``q`` is looked for in all their texts."""

    show: Show = "all"
    metric: str | None = None
    q: str = ""
    offset: int = 0
    limit: int = 25


def kept(job: Job) -> Kept | None:
    """Return where the samples of a job are; None where it kept none."""
    for version in job.outputs:
        told = version.meta.get("samples")
        if not isinstance(told, dict):
            continue
        file = next((f for f in version.files if f.path == told.get("file")), None)
        if file is not None:
            return Kept(file.sha256, int(told.get("rows", 0)), registry.label(version))
    return None


def find_kept(session: Session, job: Job) -> Kept:
    """Return where the samples of a job are; raise NotFound with what would make some."""
    found = kept(job)
    if found is None:
        raise NotFound(
            f"Job {job.id} has no samples.",
            hint="An eval with metrics (exact_match, sql_match, …) keeps every answer.",
        )
    return found


def samples(blobs: Blobs, found: Kept, wanted: Wanted) -> Document:
    """Return a page of samples, how many there are of each kind, and the metrics they have.

    Raises InvalidInput for a metric they do not have.
    """
    metrics: list[str] = []
    metric = wanted.metric
    counts = dict.fromkeys(SHOWS, 0)
    page: list[Document] = []
    needle = wanted.q.casefold().strip()
    for sample in _read(blobs, found):
        if not metrics:
            metrics = list(sample["answers"]["tuned"]["scores"])
            metric = _metric(metrics, metric)
        if needle and not _says(sample, needle):
            continue
        kinds = _kinds(sample, metric)
        for kind in kinds:
            counts[kind] += 1
        if wanted.show in kinds and wanted.offset < counts[wanted.show] <= (
            wanted.offset + wanted.limit
        ):
            page.append(sample)
    return {
        "report": found.report,
        "metrics": metrics,
        "metric": metric,
        "show": wanted.show,
        "counts": counts,
        "total": counts[wanted.show],
        "offset": wanted.offset,
        "samples": page,
    }


def _metric(metrics: list[str], wanted: str | None) -> str | None:
    if wanted is not None and wanted not in metrics:
        raise InvalidInput(
            f"These samples were not judged by {wanted!r}.",
            hint=f"They have {', '.join(metrics)}.",
            errors=[{"loc": ["metric"], "msg": f"must be {' or '.join(metrics)}"}],
        )
    return wanted or next(iter(metrics), None)


def _read(blobs: Blobs, found: Kept) -> Iterator[Document]:
    with reader(blobs, found.sha256) as lines:
        while line := lines.readline(_LONGEST):
            sample: Document = json.loads(line)
            yield sample


def _kinds(sample: Mapping[str, Any], metric: str | None) -> list[Show]:
    """Return all that a sample is shown under."""
    answers = sample["answers"]
    base, tuned = answers.get("base"), answers["tuned"]
    kinds: list[Show] = ["all"]
    if base is not None and base["text"] != tuned["text"]:
        kinds.append("changed")
    now = tuned["scores"].get(metric)
    if now is None:
        return [*kinds, "unjudged"]
    if now < 1:
        kinds.append("wrong")
    before = base["scores"].get(metric) if base else None
    if before is not None and (before < 1) != (now < 1):
        kinds.append("lost" if now < 1 else "gained")
    return kinds


def _says(sample: Mapping[str, Any], needle: str) -> bool:
    texts = [sample["prompt"], sample["reference"]]
    texts += [answer["text"] for answer in sample["answers"].values()]
    return any(needle in text.casefold() for text in texts)
