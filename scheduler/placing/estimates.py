"""How much memory a job needs, said before it runs and corrected by what jobs like it took.

The prediction itself is pure (espalier.memory). Here are the facts it is made of, from SQL; a
model's config is read from the store once and kept, outside of any transaction (``learn``). Here
too is what was measured: the footprint of a job's processes as the system sees it, which is what
a worker compares with its limit. MLX's own count leaves out Python, libraries and caches, so it
is held against the predictor in benchmarks, never against a worker.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from espalier import geometry, memory
from espalier.errors import EspalierError
from espalier.memory import Estimate
from espalier.specs import SPECS, Spec, parse
from espalier.states import AttemptState, Kind
from scheduler.bytes.blobs import Blobs
from scheduler.db import Database, now
from scheduler.models import Attempt, Job, JobInput, ModelConfig, Version, VersionFile, Worker

#: Succeeded attempts that a correction is the median of, and how far it may go: an attempt that
#: was short may have ended between two looks at its memory.
LAST, LEAST, MOST = 9, 0.5, 3.0
#: Bytes of a config.json that are read; models' have 1 to 20 kB.
MAX_CONFIG = 1 << 20
#: Jobs that made one another, followed back to a model whose config is known.
_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a job's inputs: the model's config and weights, the adapter's bytes.

    ``artifact`` or ``repo`` names the model over all its versions.
    """

    config: Mapping[str, Any] | None = None
    weights: int | None = None
    adapter: int = 0
    artifact: str | None = None
    repo: str | None = None


@dataclass(frozen=True, slots=True)
class Correction:
    """``ratio`` of measured to predicted, the median of so many ``attempts``, on a ``chip``."""

    ratio: float
    attempts: int
    chip: str | None


# --- Facts: from the store once, then from SQL --------------------------------------------


def unread(session: Session, inputs: Iterable[JobInput]) -> list[tuple[str, int]]:
    """Return sha256 and bytes of the configs of these inputs that ``learn`` must read."""
    versions = [item.version_id for item in inputs if item.role == "model" and item.version_id]
    rows = session.execute(
        select(VersionFile.sha256, VersionFile.size).where(
            VersionFile.version_id.in_(versions),
            VersionFile.path == "config.json",
            ~select(ModelConfig).where(ModelConfig.sha256 == VersionFile.sha256).exists(),
        )
    )
    return [(row.sha256, row.size) for row in rows]


def learn(database: Database, blobs: Blobs, wanted: Sequence[tuple[str, int]]) -> None:
    """Read configs from the store and keep what memory depends on; what is no JSON is kept so.

    A store that does not answer leaves them unread: an estimate says so.
    """
    for sha256, size in wanted:
        try:
            data = b"".join(blobs.open(sha256)) if size <= MAX_CONFIG else b""
            facts = geometry.kept(json.loads(data))
        except (ValueError, RecursionError):
            facts = {}
        except (EspalierError, OSError):
            continue
        with database.transaction() as session:
            _keep(session, sha256, facts)


def _keep(session: Session, sha256: str, facts: dict[str, Any]) -> None:
    try:
        with session.begin_nested():
            session.add(ModelConfig(sha256=sha256, facts=facts, created_at=now(session)))
    except IntegrityError:  # somebody else read it meanwhile
        pass


def facts_of(session: Session, inputs: Iterable[JobInput]) -> Facts:
    """Return what is known of a job's inputs, resolved or still another job's output."""
    by_role = {item.role: item for item in inputs}
    model = by_role.get("model")
    if model is None:
        return Facts()
    config, weights = _model(session, model, _DEPTH)
    version = session.get(Version, model.version_id) if model.version_id else None
    return Facts(
        config,
        weights,
        _adapter(session, by_role.get("adapter")),
        version.artifact_id if version else None,
        model.hub_repo,
    )


def _model(
    session: Session, item: JobInput, depth: int
) -> tuple[Mapping[str, Any] | None, int | None]:
    """Return a model's config and the bytes of its weight files, each None where unknown."""
    if not item.version_id:
        maker = session.get(Job, item.from_job_id) if item.from_job_id else None
        return (_made(session, maker, depth) if maker else None), None
    files = session.scalars(select(VersionFile).where(VersionFile.version_id == item.version_id))
    config: Mapping[str, Any] | None = None
    weights = 0
    for file in files:
        if file.path == "config.json":
            row = session.get(ModelConfig, file.sha256)
            config = row.facts if row else None
        elif file.path.endswith(".safetensors"):
            weights += file.size
    if config is None:
        version = session.get_one(Version, item.version_id)
        maker = session.get(Job, version.job_id) if version.job_id else None
        config = _made(session, maker, depth) if maker else None
    return config, weights or None


def _made(session: Session, job: Job, depth: int) -> Mapping[str, Any] | None:
    """Return the config of the model that a job makes: its base's, as the job changes it."""
    base = next((item for item in job.inputs if item.role == "model"), None)
    if base is None or not depth:
        return None
    config, _ = _model(session, base, depth - 1)
    return memory.made(config, parse(SPECS[Kind(job.kind)], job.spec)) if config else None


def _adapter(session: Session, item: JobInput | None) -> int:
    """Return the bytes of an adapter's last weights; 0 while it is not made yet."""
    if item is None or not item.version_id:
        return 0
    size = session.scalar(
        select(VersionFile.size).where(
            VersionFile.version_id == item.version_id, VersionFile.path == "adapters.safetensors"
        )
    )
    return size or 0


# --- Predicting ---------------------------------------------------------------------------


def predict(facts: Facts, spec: Spec, longest: int | None = None) -> Estimate:
    """Return the uncorrected estimate."""
    return memory.estimate(facts.config, spec, facts.weights, longest, facts.adapter)


def needed(session: Session, job: Job) -> int | None:
    """Return the bytes that the job's next attempt needs, corrected; None where nobody can tell.

    A few primary-key reads; nothing is read from the store.
    """
    facts = facts_of(session, job.inputs)
    found = predict(facts, effective(job))
    if not found.known:
        return None
    learnt = correction(session, facts, Kind(job.kind))
    return corrected(found, learnt)


def effective(job: Job) -> Spec:
    """Return the spec that the job's next attempt runs, the ladder's changes included."""
    return parse(SPECS[Kind(job.kind)], {**job.spec, **job.overrides})


def corrected(found: Estimate, learnt: Correction | None) -> int:
    return round(found.total * learnt.ratio) if learnt else found.total


# --- Learning from what was measured ------------------------------------------------------


def correction(
    session: Session, facts: Facts, kind: Kind, chip: str | None = None
) -> Correction | None:
    """Return what the last jobs of this kind on this model took over what was predicted.

    ``chip`` limits it to workers of one chip; without, all count. None before the first.
    """
    if facts.artifact is None and facts.repo is None:
        return None
    ratios = []
    for attempt in session.scalars(_measured(facts, kind)):
        if chip is not None and attempt.worker.machine.get("chip") != chip:
            continue
        found = predict(facts_of(session, attempt.job.inputs), effective(attempt.job))
        if found.known and attempt.peak_memory_bytes:
            ratios.append(attempt.peak_memory_bytes / found.total)
        if len(ratios) == LAST:
            break
    if not ratios:
        return None
    return Correction(min(max(median(ratios), LEAST), MOST), len(ratios), chip)


def _measured(facts: Facts, kind: Kind) -> Select[Attempt]:
    """Succeeded attempts on this model with a measured peak, newest first."""
    query = (
        select(Attempt)
        .join(Attempt.job)
        .join(Attempt.worker)
        .join(JobInput, JobInput.job_id == Job.id)
        .where(
            Attempt.state == AttemptState.SUCCEEDED,
            Attempt.peak_memory_bytes.is_not(None),
            Job.kind == kind,
            JobInput.role == "model",
        )
        .order_by(Attempt.finished_at.desc(), Attempt.id.desc())
        .limit(8 * LAST)
    )
    if facts.artifact is None:
        return query.where(JobInput.hub_repo == facts.repo)
    return query.join(Version, Version.id == JobInput.version_id).where(
        Version.artifact_id == facts.artifact
    )


def workers(session: Session) -> list[Worker]:
    """Workers that have told what they give, the largest first."""
    found = session.scalars(select(Worker).where(Worker.revoked_at.is_(None)))
    told = [worker for worker in found if gives(worker)]
    return sorted(told, key=lambda worker: (-gives(worker), worker.name))


def gives(worker: Worker) -> int:
    """Bytes a worker lets a job use; 0 before it has said hello."""
    return int(worker.machine.get("memory_limit") or 0)
