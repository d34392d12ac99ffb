"""The one door: a request is looked at before it is submitted, for form, API and CLI alike."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy.orm import Session

from espalier.errors import InvalidInput
from espalier.refs import parse_artifact
from espalier.specs import (
    EvalSpec,
    ExportSpec,
    FuseSpec,
    JobRequest,
    PipelineRequest,
    QuantizeSpec,
    Spec,
    TrainSpec,
)
from scheduler.access import Actor
from scheduler.bytes.blobs import Blobs
from scheduler.db import Database
from scheduler.lifecycle.submit import DEFAULT_PROJECT
from scheduler.placing import estimates
from scheduler.refusals import making, training
from scheduler.refusals.facts import Known, Refusal, Refusals
from scheduler.refusals.looking import Look, Made, Reading, Source, unlearnt

Place = tuple[str | int, ...]
#: What will work and is probably not meant, by spec in the request's order.
Remarks = list[tuple[str, ...]]


def check(
    database: Database, blobs: Blobs, actor: Actor, request: JobRequest | PipelineRequest
) -> Remarks:
    """Return remarks on a request; raise InvalidInput, naming every field, when it cannot work.

    It reads the store, so it is called outside of any transaction, and before the one that
    submits; what placement needs of the models' configs is kept on the way. Inputs that nobody
    knows yet (a hub's) pass: the engine looks again.
    """
    reading = Reading(blobs)
    found: list[tuple[Place, Refusal]] = []
    remarks: Remarks = []
    with database.reading() as session:
        looked = _looked(session, actor, request)
        wanted = [config for _, _, inputs in looked for config in unlearnt(session, inputs)]
    estimates.learn(database, blobs, list(dict.fromkeys(wanted)))
    for place, spec, inputs in looked:
        known = reading.known(inputs)
        found += [(place, refusal) for refusal in refusals(spec, known)]
        warned = training.warnings(spec, known) if isinstance(spec, TrainSpec) else ()
        remarks.append(tuple(warned))
    if found:
        raise _refused(found)
    return remarks


def refusals(spec: Spec, known: Known) -> Refusals:
    """Yield every reason why a job of this spec cannot work."""
    match spec:
        case TrainSpec():
            yield from training.refusals(spec, known)
        case EvalSpec():
            yield from making.eval_refusals(spec, known)
        case FuseSpec():
            yield from making.fuse_refusals(spec, known)
        case QuantizeSpec():
            yield from making.quantize_refusals(spec, known)
        case ExportSpec():
            yield from making.export_refusals(spec, known)


def _looked(
    session: Session, actor: Actor, request: JobRequest | PipelineRequest
) -> list[tuple[Place, Spec, Mapping[str, Source]]]:
    """Return each spec of a request with where it stands and what its inputs are."""
    if isinstance(request, JobRequest):
        look = Look(session, actor, _project(request.project, request.name), {})
        return [(("spec",), request.spec, look.inputs(request.spec))]
    found: list[tuple[Place, Spec, Mapping[str, Source]]] = []
    steps: dict[str, Made] = {}
    project = _project(request.project, next((s.name for s in request.steps if s.name), None))
    for number, item in enumerate(request.steps):
        inputs = Look(session, actor, project, steps).inputs(item.spec)
        steps[item.step] = Made(f"step:{item.step}", item.spec, inputs)
        found.append((("steps", number, "spec"), item.spec, inputs))
    return found


def _project(given: str | None, name: str | None) -> str:
    if name and "/" in name:
        return parse_artifact(name).project
    return given or DEFAULT_PROJECT


def _refused(found: Iterable[tuple[Place, Refusal]]) -> InvalidInput:
    errors: list[dict[str, Any]] = []
    hints = []
    for place, refusal in found:
        errors.append({"loc": [*place, *refusal.field.split(".")], "msg": refusal.message})
        hints.append(refusal.hint)
    first = errors[0]["msg"]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return InvalidInput(f"{first[0].upper()}{first[1:]}.{more}", hint=hints[0], errors=errors)
