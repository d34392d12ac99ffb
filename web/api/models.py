"""The JSON of ``/api/v1`` beyond the specs: what is asked, and the shape of every answer.

Answers are built by scheduler.queries; these models describe them in the OpenAPI document, and
tests hold the answers to them. Times are ISO 8601 UTC, sizes bytes.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from espalier.messages import FileEntry
from espalier.specs import Frozen, NameText
from espalier.states import ArtifactKind, AttemptState, JobState, Kind


def _split(value: Any) -> Any:
    """``a,b`` and repeated parameters both name several."""
    values = value if isinstance(value, list) else [value]
    return [part for text in values for part in str(text).split(",") if part]


Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Search = Annotated[str, Field(max_length=200)]


class Answer(BaseModel):
    """An answer has these fields, and in later versions maybe more."""

    model_config = ConfigDict(extra="forbid")


# --- Asked --------------------------------------------------------------------------------


class JobsQuery(Frozen):
    state: Annotated[tuple[JobState, ...], BeforeValidator(_split)] = Field(
        (), description="several: a,b"
    )
    kind: Annotated[tuple[Kind, ...], BeforeValidator(_split)] = Field(
        (), description="several: a,b"
    )
    project: Search | None = None
    pipeline: Search | None = None
    q: Search | None = Field(None, description="found in id, name and note")
    limit: int = Field(50, ge=1, le=1000)
    before: str | None = Field(None, max_length=16, description="the cursor `next` of a page")


class MetricsQuery(Frozen):
    after: int = Field(-1, ge=-1, description="points with a later step only")


class EventsQuery(Frozen):
    after: int = Field(0, ge=0, description="the id of the last event seen")
    limit: int = Field(500, ge=1, le=1000)


class LogQuery(Frozen):
    attempt: str | None = Field(None, max_length=16, description="default: the newest")
    offset: int = Field(0, ge=0, description="bytes")
    limit: int = Field(262_144, ge=1, le=1_048_576, description="bytes")


class ArtifactsQuery(Frozen):
    kind: ArtifactKind | None = None
    project: Search | None = None
    q: Search | None = Field(None, description="found in project/name")
    limit: int = Field(1000, ge=1, le=1000)


class PublishRequest(Frozen):
    """A version of files whose blobs are uploaded; ``parents`` are references it was made from."""

    kind: ArtifactKind
    files: tuple[FileEntry, ...] = Field(min_length=1, max_length=10_000)
    meta: dict[str, Any] = Field(default_factory=dict)
    parents: tuple[Annotated[str, Field(max_length=300)], ...] = Field((), max_length=100)


class AliasRequest(Frozen):
    version: str = Field(max_length=96, description="a number, commit, alias or `latest`")
    expected: str | None = Field(None, description="the commit it must point at now")


class DrainRequest(Frozen):
    draining: bool = True


class JoinRequest(Frozen):
    name: NameText


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
    id: str
    number: int
    worker: str
    state: AttemptState
    reason: str | None
    placed_at: Time
    started_at: Time | None
    finished_at: Time | None
    lease_expires_at: Time | None
    memory_bytes: int | None
    peak_memory_bytes: int | None
    log_bytes: int
    resumed_from_step: int | None
    error: Trouble | None


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
    id: str
    kind: Kind
    state: JobState
    project: str
    name: str
    note: str
    spec: dict[str, Any]
    priority: int
    max_attempts: int
    created_by: str | None
    created_at: Time
    queued_at: Time | None
    started_at: Time | None
    finished_at: Time | None
    cancel_requested_at: Time | None
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
