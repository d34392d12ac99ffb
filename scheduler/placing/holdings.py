"""What lies in the workers' caches: as they tell it, for placement and for their siblings.

Hints, never promises: a worker that threw a blob out since fetches it again, and a sibling that
lost it says so.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from espalier import tickets
from espalier.messages import MAX_HOLDINGS, FileEntry, Source
from scheduler.models import Checkpoint, JobInput, Version, VersionFile, Worker, WorkerBlob

#: Smaller blobs come from the control plane: asking a sibling first would take as long.
SHARED_FROM = 1 << 20
#: Blobs of one attempt that siblings are named for, the largest first, and siblings for each.
MAX_SHARED, SIBLINGS = 1000, 2
#: Rows of one statement.
_SOME = 500


@dataclass(frozen=True, slots=True)
class Inputs:
    """A job's input bytes, and how many of them lie at which worker."""

    size: int = 0
    held: Mapping[str, int] = field(default_factory=dict)


# --- What workers tell --------------------------------------------------------------------


def replace(session: Session, worker: Worker, blobs: Mapping[str, int] | None) -> None:
    """The worker holds these blobs (sha256 → size) and no others. Its row is locked.

    None: it does not say, so nothing is known of it. Of too many the largest are kept.
    """
    told = dict(sorted((blobs or {}).items(), key=lambda b: (-b[1], b[0]))[:MAX_HOLDINGS])
    known = _held(session, worker)
    change(session, worker, told, known - told.keys(), known)


def forget(session: Session, before: datetime) -> None:
    """Forget what workers held that have not been seen since; back again, they tell it anew."""
    gone = select(Worker.id).where((Worker.seen_at < before) | Worker.revoked_at.is_not(None))
    session.execute(delete(WorkerBlob).where(WorkerBlob.worker_id.in_(gone)))


def change(
    session: Session,
    worker: Worker,
    added: Mapping[str, int],
    removed: Collection[str],
    known: Collection[str] | None = None,
) -> None:
    """The worker has these blobs now, and those no more. Said twice it changes nothing more."""
    gone = sorted(removed)
    for first in range(0, len(gone), _SOME):
        session.execute(
            delete(WorkerBlob).where(
                WorkerBlob.worker_id == worker.id,
                WorkerBlob.sha256.in_(gone[first : first + _SOME]),
            )
        )
    if not added:
        return
    new = added.keys() - set(_held(session, worker) if known is None else known)
    rows = [{"worker_id": worker.id, "sha256": s, "size": added[s]} for s in sorted(new)]
    if rows:
        session.execute(insert(WorkerBlob), rows)


def _held(session: Session, worker: Worker) -> set[str]:
    rows = select(WorkerBlob.sha256).where(WorkerBlob.worker_id == worker.id)
    return set(session.scalars(rows))


# --- For placement ------------------------------------------------------------------------


def inputs_of(
    session: Session, job_ids: Sequence[str], worker_ids: Sequence[str]
) -> dict[str, Inputs]:
    """Return job → what it needs from the store, and how much of that lies at these workers.

    Asked by version, not by file and job: a queue has many jobs and few models. Nothing is
    counted while no worker holds anything.
    """
    here = WorkerBlob.worker_id.in_(worker_ids)
    if not job_ids or session.scalar(select(WorkerBlob.worker_id).where(here).limit(1)) is None:
        return {}
    needs: dict[str, set[str]] = {}
    named = select(JobInput.job_id, JobInput.version_id).where(
        JobInput.job_id.in_(job_ids), JobInput.version_id.is_not(None)
    )
    for job_id, version_id in session.execute(named):
        needs.setdefault(job_id, set()).add(version_id or "")
    versions = sorted(set().union(*needs.values()))
    sizes = dict(
        session.execute(select(Version.id, Version.size).where(Version.id.in_(versions))).all()
    )
    held: dict[str, dict[str, int]] = {}
    lying = (
        select(VersionFile.version_id, WorkerBlob.worker_id, func.sum(VersionFile.size))
        .join(WorkerBlob, WorkerBlob.sha256 == VersionFile.sha256)
        .where(VersionFile.version_id.in_(versions), here)
        .group_by(VersionFile.version_id, WorkerBlob.worker_id)
    )
    for version_id, worker_id, size in session.execute(lying):
        held.setdefault(version_id, {})[worker_id] = int(size)
    found: dict[str, Inputs] = {}
    resumed = _checkpoints(session, job_ids, worker_ids)
    for job_id in needs.keys() | resumed.keys():
        parts = [Inputs(sizes.get(v, 0), held.get(v, {})) for v in needs.get(job_id, ())]
        found[job_id] = _sum([*parts, resumed.get(job_id, Inputs())])
    return found


def _checkpoints(
    session: Session, job_ids: Sequence[str], worker_ids: Sequence[str]
) -> dict[str, Inputs]:
    """The same for the newest checkpoint of each job that has one."""
    newest = (
        select(Checkpoint.job_id, func.max(Checkpoint.step).label("step"))
        .where(Checkpoint.job_id.in_(job_ids))
        .group_by(Checkpoint.job_id)
        .subquery()
    )
    rows = session.execute(
        select(Checkpoint.job_id, Checkpoint.files).join(
            newest, (Checkpoint.job_id == newest.c.job_id) & (Checkpoint.step == newest.c.step)
        )
    )
    files = {job_id: {f["sha256"]: int(f["size"]) for f in saved} for job_id, saved in rows}
    names = sorted(set().union(*files.values()))
    holders: dict[str, list[str]] = {}
    for first in range(0, len(names), _SOME):
        lying = select(WorkerBlob.sha256, WorkerBlob.worker_id).where(
            WorkerBlob.sha256.in_(names[first : first + _SOME]),
            WorkerBlob.worker_id.in_(worker_ids),
        )
        for sha256, worker_id in session.execute(lying):
            holders.setdefault(sha256, []).append(worker_id)
    return {
        job_id: _sum(
            Inputs(size, dict.fromkeys(holders.get(sha256, ()), size))
            for sha256, size in sizes.items()
        )
        for job_id, sizes in files.items()
    }


def _sum(parts: Iterable[Inputs]) -> Inputs:
    size, held = 0, dict[str, int]()
    for part in parts:
        size += part.size
        for worker_id, count in part.held.items():
            held[worker_id] = held.get(worker_id, 0) + count
    return Inputs(size, held)


# --- For siblings -------------------------------------------------------------------------


def sources(
    session: Session,
    worker: Worker,
    files: Iterable[FileEntry],
    moment: datetime,
    away: timedelta,
    turn: str,
) -> tuple[Source, ...]:
    """Return where the worker finds large files that it lacks: at siblings that share theirs.

    ``turn`` decides who is asked first, so that many that start at once ask different ones.
    Siblings that were not heard of for ``away`` are not named.
    """
    sizes = {file.sha256: file.size for file in files if file.size >= SHARED_FROM}
    sharing = select(Worker).where(
        Worker.id != worker.id,
        Worker.shares_url.is_not(None),
        Worker.shares_key.is_not(None),
        Worker.revoked_at.is_(None),
        Worker.seen_at > moment - away,
        Worker.seen_at < moment + away,
    )
    siblings = {w.id: w for w in session.scalars(sharing)} if sizes else {}
    if not siblings:
        return ()
    largest = sorted(sizes, key=lambda sha256: (-sizes[sha256], sha256))[:MAX_SHARED]
    holders: dict[str, set[str]] = {}
    for first in range(0, len(largest), _SOME):
        lying = select(WorkerBlob.sha256, WorkerBlob.worker_id).where(
            WorkerBlob.sha256.in_(largest[first : first + _SOME]),
            WorkerBlob.worker_id.in_([*siblings, worker.id]),
        )
        for sha256, worker_id in session.execute(lying):
            holders.setdefault(sha256, set()).add(worker_id)
    expires = int(moment.timestamp()) + tickets.TICKET_SECONDS
    found = []
    for sha256 in largest:
        if worker.id in holders.get(sha256, ()):
            continue
        order = sorted(holders.get(sha256, ()), key=lambda w: tickets.issue(w, turn, 0))
        for sibling in (siblings[worker_id] for worker_id in order[:SIBLINGS]):
            ticket = tickets.issue(sibling.shares_key or "", sha256, expires)
            found.append(
                Source(
                    sha256=sha256, url=sibling.shares_url or "", ticket=ticket, name=sibling.name
                )
            )
    return tuple(found)
