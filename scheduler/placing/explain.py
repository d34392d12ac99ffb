"""What a job would need, where it fits, and the one change that makes it fit: nothing is submitted.

Configs are read from the store between two looks at SQL, so that no lock waits for the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from espalier.fitting import Change, first_fit
from espalier.memory import Estimate
from espalier.specs import JobRequest, Spec
from espalier.states import Kind
from scheduler.access import Actor
from scheduler.bytes.blobs import Blobs
from scheduler.db import Database
from scheduler.lifecycle import submit
from scheduler.lifecycle.ladder import size
from scheduler.models import Job, JobInput, Worker
from scheduler.placing import estimates
from scheduler.placing.estimates import Correction, Facts, corrected


@dataclass(frozen=True, slots=True)
class Room:
    """A worker, and whether the job fits: bytes; None where the need is not known."""

    name: str
    chip: str
    gives: int
    needs: int | None
    fits: bool | None
    correction: Correction | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """``needs`` is the corrected total of ``parts``; ``change`` is there when no worker fits."""

    kind: str
    known: bool
    why: str
    needs: int | None
    parts: dict[str, int]
    correction: Correction | None
    workers: tuple[Room, ...]
    change: Change | None
    summary: str


def explain_request(
    database: Database,
    blobs: Blobs,
    actor: Actor,
    request: JobRequest,
    longest: int | None = None,
) -> Explanation:
    """Say what a job would need. Raises what submitting it would raise."""
    with database.reading() as session:
        wanted = estimates.unread(session, submit.inputs_of(session, actor, request))
    estimates.learn(database, blobs, wanted)
    with database.reading() as session:
        inputs = submit.inputs_of(session, actor, request)
        return explain(session, inputs, request.spec, longest)


def explain_job(
    database: Database, blobs: Blobs, actor: Actor, job_id: str, longest: int | None = None
) -> Explanation:
    """Say what a submitted job's next attempt needs. Raises NotFound."""
    with database.reading() as session:
        wanted = estimates.unread(session, submit.find_job(session, actor, job_id).inputs)
    estimates.learn(database, blobs, wanted)
    with database.reading() as session:
        job: Job = submit.find_job(session, actor, job_id)
        return explain(session, job.inputs, estimates.effective(job), longest)


def explain(
    session: Session, inputs: Sequence[JobInput], spec: Spec, longest: int | None = None
) -> Explanation:
    facts = estimates.facts_of(session, inputs)
    found = estimates.predict(facts, spec, longest)
    kind = Kind(spec.kind)
    learnt = estimates.correction(session, facts, kind)
    rooms = tuple(_rooms(session, facts, found, kind, learnt))
    change = None
    if found.known and rooms and not any(room.fits for room in rooms):
        change = _change(facts, spec, rooms[0], longest)
    return Explanation(
        spec.kind,
        found.known,
        found.why,
        corrected(found, learnt) if found.known else None,
        dict(found.parts),
        learnt,
        rooms,
        change,
        _summary(found, rooms, change),
    )


def _rooms(
    session: Session, facts: Facts, found: Estimate, kind: Kind, general: Correction | None
) -> list[Room]:
    """Judge every worker by what its own chip has shown, else by what any has."""
    by_chip: dict[str, Correction | None] = {}
    rooms = []
    for worker in estimates.workers(session):
        chip = str(worker.machine.get("chip") or "")
        if chip not in by_chip:
            by_chip[chip] = estimates.correction(session, facts, kind, chip) or general
        rooms.append(_room(worker, chip, found, by_chip[chip]))
    return rooms


def _room(worker: Worker, chip: str, found: Estimate, learnt: Correction | None) -> Room:
    gives = estimates.gives(worker)
    needs = corrected(found, learnt) if found.known else None
    fits = None if needs is None else needs <= gives
    return Room(worker.name, chip, gives, needs, fits, learnt)


def _change(facts: Facts, spec: Spec, largest: Room, longest: int | None) -> Change | None:
    """Return the first single change with which the job fits the worker with most to give."""
    ratio = largest.correction.ratio if largest.correction else 1.0
    limit = round(largest.gives / ratio)
    return first_fit(facts.config, spec, facts.weights, limit, longest, facts.adapter)


def _summary(found: Estimate, rooms: Sequence[Room], change: Change | None) -> str:
    """One sentence: where it fits, where not and by how much, and what would help."""
    if not found.known:
        return f"What it needs cannot be told: {found.why}."
    if not rooms:
        return f"It needs {size(found.total)}; no worker has joined yet."
    fits = [room.name for room in rooms if room.fits]
    lacks = [room for room in rooms if not room.fits]
    parts = []
    if fits:
        parts.append(f"fits {_listed(fits)}")
    if lacks:
        named = _listed([room.name for room in lacks])
        nearest = lacks[0]
        needs = size(nearest.needs or 0)
        parts.append(
            f"not {named}: needs {needs}, {nearest.name} has {size(nearest.gives)} to give"
        )
    said = ", ".join(parts)
    if not fits:
        said += f"; {change.message}" if change else "; no single change makes it fit"
    return f"{said[0].upper()}{said[1:]}."


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
