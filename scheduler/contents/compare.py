"""Two versions side by side: files, configs, tensors, metrics, card.

What is read of the store is read outside of any transaction. Files of the same sha256 are not
looked into, and neither are formats whose content is not a table of values.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from threading import Lock
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from espalier.errors import EspalierError
from espalier.states import JobState, Kind
from espalier.vetting import is_config
from scheduler.access import Actor, visible_projects
from scheduler.bytes.blobs import Blobs
from scheduler.catalog.registry import label
from scheduler.contents.tensors import Opened, Tensor, TensorChange, changes, read_header
from scheduler.db import Database
from scheduler.models import Job, JobInput, Version

#: Bytes of a config, and of a card, that are compared; and lines of a card.
MAX_TEXT, MAX_LINES = 1 << 20, 5000
#: Keys, and tensors, that an answer lists.
MOST_KEYS, MOST_TENSORS = 1000, 5000
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class FileChange:
    """``before`` and ``after`` are bytes, None where the file is not there."""

    path: str
    change: Literal["added", "removed", "changed"]
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A value of a JSON config, as JSON text, by its path (``rope.type``, ``layers[3]``)."""

    file: str
    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class MetricChange:
    """A figure of the jobs that made or evaluated the versions; None where there is none."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """``before`` and ``after`` are labels; ``remarks`` say what was not compared, and why.

    ``files_same`` and ``tensors_same`` count what is equal; ``card`` is a unified diff.
    """

    before: str
    after: str
    files: tuple[FileChange, ...]
    files_same: int
    config: tuple[KeyChange, ...]
    tensors: tuple[TensorChange, ...]
    tensors_same: int
    metrics: tuple[MetricChange, ...]
    card: str | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class _Side:
    """One version as it is compared: files by path, metrics by name."""

    label: str
    files: Mapping[str, _File]
    metrics: Mapping[str, float]


def compare(
    database: Database, blobs: Blobs, actor: Actor, before_id: str, after_id: str
) -> Comparison:
    """Compare two versions, by their ids, that the actor was found to see.

    Raises NotFound or Unavailable when the store cannot give their files.
    """
    with database.reading() as session:
        before, after = (
            _side(session, actor, session.get_one(Version, one)) for one in (before_id, after_id)
        )
    remarks: list[str] = []
    tensors, same = _tensors(blobs, before, after, remarks)
    return Comparison(
        before=before.label,
        after=after.label,
        files=tuple(_files(before, after)),
        files_same=sum(after.files.get(path) == file for path, file in before.files.items()),
        config=tuple(_configs(blobs, before, after, remarks)),
        tensors=tuple(tensors),
        tensors_same=same,
        metrics=tuple(_metrics(before, after)),
        card=_card(blobs, before, after, remarks),
        remarks=tuple(remarks),
    )


# --- What there is to compare -------------------------------------------------------------


def _side(session: Session, actor: Actor, version: Version) -> _Side:
    files = {file.path: _File(file.sha256, file.size) for file in version.files}
    return _Side(label(version), files, _figures(session, actor, version))


def _figures(session: Session, actor: Actor, version: Version) -> dict[str, float]:
    """Return what is known of a version in numbers: of itself, of its job, of its evaluations.

    An evaluation's are named with its data; of several on the same data the newest counts.
    """
    found = _numbers(version.meta.get("metrics"))
    if version.job_id is not None:
        made = select(Job).join(Job.project).where(Job.id == version.job_id)
        job = session.scalar(made.where(visible_projects(actor)))
        found |= _numbers(job.metrics if job else None)
    for job, data in _evaluations(session, actor, version):
        on = label(data) if data is not None else "data of another hub"
        found |= {f"{name} on {on}": value for name, value in _numbers(job.metrics).items()}
    return found


def _evaluations(
    session: Session, actor: Actor, version: Version
) -> Iterator[tuple[Job, Version | None]]:
    """Yield the evaluations of the version that succeeded and their data, oldest first."""
    mine, data, adapter = aliased(JobInput), aliased(JobInput), aliased(JobInput)
    query = (
        select(Job, Version)
        .join(Job.project)
        .join(mine, mine.job_id == Job.id)
        .outerjoin(data, (data.job_id == Job.id) & (data.role == "data"))
        .outerjoin(Version, Version.id == data.version_id)
        .outerjoin(adapter, (adapter.job_id == Job.id) & (adapter.role == "adapter"))
        .where(
            mine.version_id == version.id,
            # A model that was tried with an adapter was not what was evaluated.
            (mine.role == "adapter") | ((mine.role == "model") & adapter.job_id.is_(None)),
            Job.kind == Kind.EVAL.value,
            Job.state == JobState.SUCCEEDED.value,
            visible_projects(actor),
        )
        .order_by(Job.finished_at, Job.id)
    )
    for row in session.execute(query):
        yield row[0], row[1]


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    }


# --- Comparing ----------------------------------------------------------------------------


def _files(before: _Side, after: _Side) -> Iterator[FileChange]:
    for path in sorted(before.files.keys() | after.files.keys()):
        one, other = before.files.get(path), after.files.get(path)
        if one is None and other is not None:
            yield FileChange(path, "added", None, other.size)
        elif one is not None and other is None:
            yield FileChange(path, "removed", one.size, None)
        elif one is not None and other is not None and one.sha256 != other.sha256:
            yield FileChange(path, "changed", one.size, other.size)


def _metrics(before: _Side, after: _Side) -> Iterator[MetricChange]:
    for name in sorted(before.metrics.keys() | after.metrics.keys()):
        yield MetricChange(name, before.metrics.get(name), after.metrics.get(name))


def _configs(blobs: Blobs, before: _Side, after: _Side, remarks: list[str]) -> list[KeyChange]:
    found: list[KeyChange] = []
    for path in sorted(before.files.keys() & after.files.keys()):
        one, other = before.files[path], after.files[path]
        if not is_config(path) or one.sha256 == other.sha256:
            continue
        if max(one.size, other.size) > MAX_TEXT:
            remarks.append(f"{path} has more than {MAX_TEXT >> 20} MiB: it was not compared.")
            continue
        try:
            old, new = (dict(_flat("", json.loads(_read(blobs, f)))) for f in (one, other))
        except (ValueError, RecursionError):
            remarks.append(f"{path} is not JSON in both: it was not compared.")
            continue
        found += [
            KeyChange(path, key, old.get(key), new.get(key))
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
    if len(found) > MOST_KEYS:
        remarks.append(f"Of {len(found):,} keys that differ the first {MOST_KEYS:,} are listed.")
    return found[:MOST_KEYS]


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield (path, JSON text) of every leaf; an empty list or object is one."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}" if key else name, inner)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _flat(f"{key}[{index}]", inner)
    else:
        yield key, json.dumps(value, ensure_ascii=False)


def _card(blobs: Blobs, before: _Side, after: _Side, remarks: list[str]) -> str | None:
    one, other = before.files.get(CARD), after.files.get(CARD)
    if one == other:
        return None
    if max(file.size for file in (one, other) if file) > MAX_TEXT:
        remarks.append(f"{CARD} has more than {MAX_TEXT >> 20} MiB: it was not compared.")
        return None
    old, new = (
        _read(blobs, file).decode(errors="replace").splitlines() if file else []
        for file in (one, other)
    )
    if max(len(old), len(new)) > MAX_LINES:
        remarks.append(f"{CARD} has more than {MAX_LINES:,} lines: it was not compared.")
        return None
    lines = difflib.unified_diff(old, new, before.label, after.label, lineterm="")
    return "\n".join(lines)


def _read(blobs: Blobs, file: _File) -> bytes:
    return b"".join(blobs.open(file.sha256, 0, file.size))


# --- Tensors ------------------------------------------------------------------------------

#: One at a time: each fills a core and reads gigabytes, and who asks again finds it done.
_READING = Lock()


def _tensors(
    blobs: Blobs, before: _Side, after: _Side, remarks: list[str]
) -> tuple[Sequence[TensorChange], int]:
    with _READING:
        found, same, told = _compared(blobs, _weights(before), _weights(after))
    remarks += told
    if len(found) > MOST_TENSORS:
        remarks.append(
            f"Of {len(found):,} tensors that differ the {MOST_TENSORS:,} that differ most are"
            " listed."
        )
    if any(_gguf(before, path) != _gguf(after, path) for path in before.files):
        remarks.append("GGUF files were compared as bytes, not tensor by tensor.")
    return found[:MOST_TENSORS], same


def _weights(side: _Side) -> tuple[_File, ...]:
    return tuple(f for path, f in sorted(side.files.items()) if path.endswith(".safetensors"))


def _gguf(side: _Side, path: str) -> _File | None:
    return side.files.get(path) if path.endswith(".gguf") else None


@lru_cache(maxsize=16)
def _compared(
    blobs: Blobs, before: tuple[_File, ...], after: tuple[_File, ...]
) -> tuple[list[TensorChange], int, tuple[str, ...]]:
    """Compare what the files hold. They never change: neither does the answer."""

    def opened(sha256: str, start: int, size: int) -> Iterator[bytes]:
        return blobs.open(sha256, start, size)

    remarks: list[str] = []
    old, new = (_headers(opened, files, remarks) for files in (before, after))
    found, same = changes(opened, old, new)
    unread = sum(change.change == "unread" for change in found)
    if unread:
        remarks.append(
            f"{unread} tensor{'s' if unread > 1 else ''} beyond the first gigabytes were not read:"
            " they have the same shape, and may have the same values."
        )
    if any(change.change == "packed" for change in found):
        remarks.append(
            "Packed tensors (quantized weights) were not compared by value: what they mean depends"
            " on their scales."
        )
    return found, same, tuple(remarks)


def _headers(opened: Opened, files: Sequence[_File], remarks: list[str]) -> list[Tensor]:
    found: list[Tensor] = []
    for file in files:
        try:
            found += read_header(opened, file.sha256, file.size)
        except EspalierError as error:
            if error.status >= 500:  # the store is away: that is no answer to keep
                raise
            remarks.append(error.detail)
    return found
