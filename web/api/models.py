"""The JSON of ``/api/v1`` beyond the specs: the shape of every answer.

Answers are built by scheduler.queries; these models describe them in the OpenAPI document, and
tests hold the answers to them. Times are ISO 8601 UTC, sizes bytes.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from espalier.states import ArtifactKind, AttemptState, JobState, Kind

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Answer(BaseModel):
    """An answer has these fields, and in later versions maybe more."""

    model_config = ConfigDict(extra="forbid")


# --- Answered: people ---------------------------------------------------------------------


class WhoAmI(Answer):
    user: str
    is_admin: bool
    projects: list[str]


class Fault(Answer):
    loc: list[str | int]
    msg: str


class Problem(Answer):
    """RFC 9457. ``errors`` locates each fault: the field, the value, the limit."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[Fault]
    hint: str | None = None


# --- Answered: jobs -----------------------------------------------------------------------


class Trouble(Answer):
    """Why it failed, for a person: the sentence and the next step."""

    code: str
    message: str
    hint: str | None = None


class FileAnswer(Answer):
    path: str
    size: int
    sha256: str


class AttemptAnswer(Answer):
    """``charged`` counts against ``max_attempts``; what machines or people ended does not."""

    id: str
    number: int
    worker: str
    state: AttemptState
    reason: str | None
    charged: bool
    preempted: bool
    preempt_requested_at: Time | None
    placed_at: Time
    started_at: Time | None
    finished_at: Time | None
    lease_expires_at: Time | None
    memory_bytes: int | None
    peak_memory_bytes: int | None
    log_bytes: int
    resumed_from_step: int | None
    error: Trouble | None


class RungAnswer(BaseModel):
    """A step of the ladder: what changed after ``attempt`` ran out of memory on ``worker``.

    ``memory_limit`` is what that worker had to give, in bytes; ``message`` is for people.
    """

    model_config = ConfigDict(
        extra="forbid", serialize_by_alias=True, validate_by_alias=True, validate_by_name=True
    )

    rung: Literal["micro_batch_size", "grad_checkpoint", "min_memory_bytes"]
    before: int | bool = Field(alias="from")
    after: int | bool = Field(alias="to")
    worker: str
    attempt: str
    memory_limit: int
    message: str


class InputAnswer(Answer):
    """``ref`` as it was asked for, ``pinned`` the version it means, ``job`` whose output it is."""

    role: str
    ref: str
    pinned: str | None
    commit: str | None
    kind: ArtifactKind | None
    job: str | None


class OutputAnswer(Answer):
    role: str | None
    kind: ArtifactKind
    ref: str
    commit: str
    size: int
    files: list[FileAnswer]


class JobAnswer(Answer):
    """``paused``: held back, and no worker has it; ``pause_requested_at`` alone: it is stopping.

    ``spec`` is what was asked for; ``effective_spec`` what runs since the ladder changed it.
    ``charged`` attempts count against ``max_attempts``; ``lost`` ones, which machines ended, set
    the job aside when there are too many (``set_aside``). It is not placed before ``not_before``,
    nor on a worker with less than ``min_memory_bytes`` to give.
    """

    id: str
    kind: Kind
    state: JobState
    paused: bool
    project: str
    name: str
    note: str
    spec: dict[str, Any]
    effective_spec: dict[str, Any] | None
    ladder: list[RungAnswer]
    min_memory_bytes: int | None
    priority: int
    max_attempts: int
    charged: int
    lost: int
    set_aside: bool
    created_by: str | None
    created_at: Time
    queued_at: Time | None
    not_before: Time | None
    started_at: Time | None
    finished_at: Time | None
    cancel_requested_at: Time | None
    pause_requested_at: Time | None
    pipeline_id: str | None
    step: str | None
    needs: list[str]
    worker: str | None
    phase: str | None
    progress: dict[str, Any] | None
    metrics: dict[str, Any]
    proofs: list[dict[str, Any]]
    tables: list[dict[str, Any]]
    reason: str | None
    error: Trouble | None
    attempts: list[AttemptAnswer]
    inputs: list[InputAnswer]
    outputs: list[OutputAnswer]


class JobsAnswer(Answer):
    jobs: list[JobAnswer]
    next: str | None


class PipelineAnswer(Answer):
    id: str
    project: str
    jobs: list[JobAnswer]


class Point(BaseModel):
    """A point of the curves; an eval's holds test_loss, perplexity and tokens."""

    model_config = ConfigDict(extra="allow")

    step: int
    time: Time
    train_loss: float | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None
    learning_rate: float | None = None
    peak_memory_bytes: float | None = None


class MetricsAnswer(Answer):
    points: list[Point]


class EventAnswer(Answer):
    id: int
    type: str
    message: str
    data: dict[str, Any]
    attempt: str | None
    time: Time


class EventsAnswer(Answer):
    events: list[EventAnswer]


class LogAnswer(Answer):
    attempt: str | None
    offset: int
    next_offset: int
    text: str
    ended: bool


# --- Answered: artifacts ------------------------------------------------------------------


class VersionBrief(Answer):
    ref: str
    commit: str
    size: int
    created_at: Time


class ArtifactBrief(Answer):
    project: str
    name: str
    kind: ArtifactKind
    created_at: Time
    updated_at: Time
    latest: VersionBrief
    aliases: list[str]


class ArtifactsAnswer(Answer):
    artifacts: list[ArtifactBrief]


class VersionLine(VersionBrief):
    number: int
    meta: dict[str, Any]
    created_by: str | None
    job: str | None


class ArtifactAnswer(Answer):
    project: str
    name: str
    kind: ArtifactKind
    created_at: Time
    updated_at: Time
    latest: VersionBrief | None
    versions: list[VersionLine]
    aliases: dict[str, str]


class RelativeAnswer(Answer):
    role: str
    ref: str
    kind: ArtifactKind
    commit: str
    job: str | None


class VersionAnswer(Answer):
    ref: str
    project: str
    name: str
    kind: ArtifactKind
    commit: str
    number: int
    size: int
    files: list[FileAnswer]
    meta: dict[str, Any]
    aliases: list[str]
    created_at: Time
    created_by: str | None
    job: str | None
    parents: list[RelativeAnswer]
    children: list[RelativeAnswer]


class AliasAnswer(Answer):
    alias: str
    ref: str
    commit: str


# --- Answered: projects -------------------------------------------------------------------


class ProjectAnswer(Answer):
    """``role`` is yours; None for an admin who is no member. ``weight`` is in fair share.

    ``used_bytes`` count against ``quota_bytes`` (None: no limit): the files of all versions that
    are there, each once. Versions that nothing names go after ``ttl_days``.
    """

    name: str
    role: Literal["owner", "member"] | None
    weight: float
    preemptible: bool
    quota_bytes: int | None
    used_bytes: int
    ttl_days: int | None
    created_at: Time


class ProjectsAnswer(Answer):
    projects: list[ProjectAnswer]


# --- Answered: workers --------------------------------------------------------------------


class WorkerAnswer(Answer):
    id: str
    name: str
    state: Literal["idle", "busy", "draining", "suspect", "away", "revoked"]
    machine: dict[str, Any]
    slots: int
    busy_slots: int
    draining: bool
    created_at: Time
    started_at: Time | None
    seen_at: Time | None
    running: list[str]


class WorkersAnswer(Answer):
    workers: list[WorkerAnswer]


class JoinToken(Answer):
    token: str
    expires_at: Time


class Joined(Answer):
    worker_id: str
    name: str
    token: str
