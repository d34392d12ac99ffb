"""What an alias asks of a version before it moves there.

A gate names a data set's version, a metric and a distance: the newest eval of the candidate on
that data must beat the eval of the version that the alias points at, measured the same way, and
no proof may have failed. What was measured is looked up, never asked for: jobs have done it, and
their rows cannot be written by people. Judged under the artifact's lock: nobody moves the alias
between the verdict and the move.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from espalier.errors import GateRefused, InvalidInput, NotFound
from espalier.refs import check_name, parse_artifact
from espalier.specs import EvalSpec
from espalier.states import JOB_OPEN, ArtifactKind, JobState, Kind
from scheduler import access
from scheduler.access import Actor, audit
from scheduler.catalog import projects, registry
from scheduler.catalog.registry import label, path_of
from scheduler.db import now
from scheduler.models import Alias, Artifact, Gate, Job, JobInput, Version

#: Metrics that a gate can ask for, and whether more of it is better.
METRICS = {"test_loss": False, "perplexity": False, "exact_match": True, "accuracy": True}
#: What an eval can measure, and the role it has in it.
_ROLE = {ArtifactKind.ADAPTER: "adapter", ArtifactKind.MODEL: "model"}
#: The settings of an eval that change what it measures; two are held against each other only
#: where these are the same.
_MEASURED_BY = ("test_batches", "batch_size", "max_seq_length", "mask_prompt", "seed")
#: The split that counts.
_SPLIT = "test"
#: Two measurements this near are the same: they went through JSON.
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a version may go where it was judged for; ``words`` say why or why not."""

    passed: bool
    words: str

    def require(self) -> str:
        """Return the words. Raises GateRefused with them."""
        if not self.passed:
            raise GateRefused(self.words)
        return self.words


# --- What people decide -------------------------------------------------------------------


def set_gate(
    session: Session,
    actor: Actor,
    artifact: Artifact,
    alias: str,
    *,
    data: str,
    metric: str = "test_loss",
    min_delta: float = 0.0,
    proofs: bool = True,
) -> Gate:
    """Ask this of every version that ``alias`` is moved to from now on.

    ``data`` is a reference: the version it means now is the one that counts. Raises Forbidden for
    anybody but owners and admins, NotFound for data there is none of, InvalidInput for a metric
    nobody knows, a distance below zero, and what no eval can measure.
    """
    projects.require_manager(session, actor, artifact.project)
    check_name(alias, "alias")
    on = _check(session, actor, artifact, data, metric, min_delta)
    registry.locked(session, Artifact.id == artifact.id)
    row = session.get(Alias, (artifact.id, alias))
    if row is not None and row.kind != "alias":
        raise InvalidInput(f"{alias} is a {row.kind}: only an alias can have a gate.")
    gate = session.get(Gate, (artifact.id, alias), populate_existing=True)
    if gate is None:
        gate = Gate(artifact_id=artifact.id, alias=alias, number=0)
    gate.data, gate.metric, gate.min_delta, gate.proofs = label(on), metric, min_delta, proofs
    gate.number += 1
    gate.updated_by, gate.updated_at = actor.user_id, now(session)
    session.add(gate)
    registry.changed(artifact)
    session.flush()
    told = {"data": gate.data, "metric": metric, "min_delta": min_delta, "proofs": proofs}
    audit(session, actor, "gate.set", f"{path_of(artifact)}@{alias}", told)
    return gate


def _check(
    session: Session, actor: Actor, artifact: Artifact, data: str, metric: str, min_delta: float
) -> Version:
    if artifact.kind not in _ROLE:
        raise InvalidInput(f"{path_of(artifact)} is a {artifact.kind}: no eval measures one.")
    if metric not in METRICS:
        known = ", ".join(METRICS)
        raise InvalidInput(
            f"There is no metric {metric!r}.",
            hint=f"There are {known}.",
            errors=[{"loc": ["metric"], "msg": f"must be {known} (got {metric!r})"}],
        )
    if not math.isfinite(min_delta) or min_delta < 0:
        raise InvalidInput(
            f"{min_delta} is no distance: it must be 0 or more.",
            errors=[{"loc": ["min_delta"], "msg": f"must be 0 or more (got {min_delta})"}],
        )
    ref = parse_artifact(data, project=artifact.project.name)
    access.project_for(session, actor, ref.project)
    on = registry.resolve(session, ref)
    if on.artifact.kind != ArtifactKind.DATASET:
        raise InvalidInput(
            f"{label(on)} is a {on.artifact.kind}: evals measure on a data set.",
            errors=[{"loc": ["data"], "msg": "must be a data set"}],
        )
    return on


def remove_gate(session: Session, actor: Actor, artifact: Artifact, alias: str) -> None:
    """Ask nothing of the alias any more. Raises Forbidden, NotFound."""
    projects.require_manager(session, actor, artifact.project)
    registry.locked(session, Artifact.id == artifact.id)
    gate = gate_on(session, artifact, alias)
    if gate is None:
        raise NotFound(f"{path_of(artifact)}@{alias} has no gate.")
    session.delete(gate)
    registry.changed(artifact)
    session.flush()
    audit(session, actor, "gate.remove", f"{path_of(artifact)}@{alias}", {"data": gate.data})


def gate_on(session: Session, artifact: Artifact, alias: str) -> Gate | None:
    """Return the alias's gate as it is now."""
    return session.get(Gate, (artifact.id, alias), populate_existing=True)


def gates_of(session: Session, artifact: Artifact) -> list[Gate]:
    """Return the artifact's gates by the names of their aliases."""
    mine = select(Gate).where(Gate.artifact_id == artifact.id)
    return list(session.scalars(mine.order_by(Gate.alias)))


def words(gate: Gate) -> str:
    """Return what a gate asks, as one sentence."""
    better = f"be at least {_figure(gate.min_delta)} better than" if gate.min_delta else "not be"
    whose = "the incumbent's" if gate.min_delta else "worse than the incumbent's"
    proofs = ", and no proof may have failed" if gate.proofs else ""
    return f"{gate.metric} on {gate.data} must {better} {whose}{proofs}."


# --- The verdict --------------------------------------------------------------------------


def judge(
    session: Session, artifact: Artifact, alias: str, version: Version, incumbent: Version | None
) -> Verdict:
    """Say whether ``alias`` may move from ``incumbent`` (None: it is not there) to ``version``.

    Without a gate everything may. The first version needs an eval on the data and its proofs.
    """
    gate = gate_on(session, artifact, alias)
    if gate is None:
        return Verdict(True, "")
    data = _data(session, gate)
    if data is None:
        return Verdict(False, f"The gate's data, {gate.data}, is there no more: set it anew.")
    mine = _evals(session, version, data)
    theirs = _evals(session, incumbent, data) if incumbent else []
    if not mine:
        return Verdict(False, _missing(session, version, data, theirs))
    candidate, against = _pair(mine, theirs)
    if incumbent is not None and against is None:
        return Verdict(False, _missing(session, incumbent, data, mine))
    if gate.proofs and (failed := _failed_proofs(version, candidate)):
        return Verdict(False, f"A proof of v{version.number} does not hold: {failed}.")
    return _compare(gate, version, candidate, incumbent, against)


def _compare(
    gate: Gate, version: Version, candidate: Job, incumbent: Version | None, against: Job | None
) -> Verdict:
    name, value = gate.metric, _value(candidate, gate.metric)
    if value is None:
        return Verdict(False, f"Job {candidate.id}, the eval of v{version.number}, has no {name}.")
    if incumbent is None or against is None:
        first = f"{name} {_figure(value)} on {gate.data} (job {candidate.id})"
        return Verdict(True, f"{first}; {gate.alias} pointed at nothing before.")
    other = _value(against, name)
    if other is None:
        return Verdict(False, f"Job {against.id}, the eval of v{incumbent.number}, has no {name}.")
    gain = value - other if METRICS[name] else other - value
    if math.isnan(gain):  # both infinite
        gain = 0.0
    theirs = f"{gate.alias}'s {_figure(other)} (v{incumbent.number})"
    text = f"{name} {_figure(value)} is {_distance(gain)} {theirs} on {gate.data}"
    if gain + _SAME >= gate.min_delta:
        return Verdict(True, f"{text}; jobs {candidate.id} and {against.id}.")
    asked = f"at least {_figure(gate.min_delta)} better" if gate.min_delta else "no worse"
    return Verdict(False, f"{text}; it has to be {asked}.")


def _distance(gain: float) -> str:
    if abs(gain) <= _SAME:
        return "the same as"
    return f"{_figure(abs(gain))} {'better' if gain > 0 else 'worse'} than"


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _value(job: Job, metric: str) -> float | None:
    value = job.metrics.get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


# --- What was measured --------------------------------------------------------------------


def _data(session: Session, gate: Gate) -> Version | None:
    """Return the data's version, also when it was moved or deleted since: evals were made on it."""
    ref = parse_artifact(gate.data)
    try:
        artifact = registry.find_artifact(session, ref.project, ref.name)
    except NotFound:
        return None
    numbered = Version.artifact_id == artifact.id, Version.number == ref.version
    return session.scalar(select(Version).where(*numbered))


def _evals(session: Session, version: Version, data: Version) -> list[Job]:
    """Return the succeeded evals of ``version`` on ``data``'s test split, newest first."""
    jobs = _eval_jobs(session, version, data)
    done = [job for job in jobs if job.state == JobState.SUCCEEDED]
    return [job for job in done if job.spec.get("split", _SPLIT) == _SPLIT]


def _eval_jobs(session: Session, version: Version, data: Version) -> Sequence[Job]:
    """Jobs of kind eval that have both among their inputs; a model's with no adapter on it."""
    role = _ROLE[ArtifactKind(version.artifact.kind)]
    of, on, adapter = aliased(JobInput), aliased(JobInput), aliased(JobInput)
    query = (
        select(Job)
        .join(of, (of.job_id == Job.id) & (of.role == role) & (of.version_id == version.id))
        .join(on, (on.job_id == Job.id) & (on.role == "data") & (on.version_id == data.id))
        .where(Job.kind == Kind.EVAL)
        .order_by(Job.finished_at.desc(), Job.created_at.desc(), Job.id.desc())
    )
    if role == "model":
        tuned = select(adapter.job_id).where(adapter.job_id == Job.id, adapter.role == "adapter")
        query = query.where(~tuned.exists())
    return session.scalars(query).all()


def _pair(mine: Sequence[Job], theirs: Sequence[Job]) -> tuple[Job, Job | None]:
    """Return the newest of mine that one of theirs was measured like, and the newest of those."""
    for candidate in mine:
        for against in theirs:
            if _measured_by(candidate) == _measured_by(against):
                return candidate, against
    return mine[0], None


def _measured_by(job: Job) -> tuple[object, ...]:
    """The whole split is the whole split, in whatever batches it is read."""
    fields = EvalSpec.model_fields
    found = {name: job.spec.get(name, fields[name].default) for name in _MEASURED_BY}
    if found["test_batches"] == -1:
        found["batch_size"] = found["seed"] = None
    return tuple(found.values())


def _failed_proofs(version: Version, candidate: Job) -> str | None:
    """Name a proof that failed, of the job that made the version or of its eval."""
    for job in (version.job, candidate):
        for proof in job.proofs if job else ():
            if proof.get("ok") is False:
                limit = proof.get("limit")
                against = f", the limit {_figure(limit)}" if limit is not None else ""
                assert job is not None
                return f"{proof['name']} is {_figure(proof['value'])}{against} (job {job.id})"
    return None


def _missing(session: Session, version: Version, data: Version, alike: Sequence[Job]) -> str:
    """Say which eval is not there, and how to get it: measured like one of ``alike``."""
    what = f"eval of v{version.number} on {label(data)}"
    for job in _eval_jobs(session, version, data):
        if job.state in JOB_OPEN and job.spec.get("split", _SPLIT) == _SPLIT:
            return f"The {what}, job {job.id}, is {job.state}: try again when it has succeeded."
    how = _settings(alike[0]) if alike else ""
    like = f" that was measured like v{_measured(alike[0])}'s" if how else ""
    return f"There is no {what}{like}: run `{_command(version, data)}{how}`."


def _measured(job: Job) -> int:
    role = next(i for r in ("adapter", "model") for i in job.inputs if i.role == r)
    return role.version.number if role.version else 0


def _command(version: Version, data: Version) -> str:
    """Return the `espalier eval` that measures what is missing."""
    if version.artifact.kind == ArtifactKind.ADAPTER:
        measured = f"--model {_base(version)} --adapter {label(version)}"
    else:
        measured = f"--model {label(version)}"
    return f"espalier eval {measured} --data {label(data)}"


def _settings(job: Job) -> str:
    """Return the flags that make another eval measure as this one did; defaults need none."""
    flags = []
    for name in _MEASURED_BY:
        default = EvalSpec.model_fields[name].default
        value = job.spec.get(name, default)
        if value != default:
            flag = "--" + name.replace("_", "-")
            flags.append(f" {flag}" if value is True else f" {flag} {value}")
    return "".join(flags)


def _base(version: Version) -> str:
    """Return the base an adapter was trained on, or a word for it where nothing tells."""
    for item in version.job.inputs if version.job else ():
        if item.role == "model":
            return label(item.version) if item.version else item.ref
    return "MODEL"
