"""What worker and control plane, and runner and child, say to each other.

Worker → control plane (HTTP, ``/agent/v1``, worker token)

==========================================  =====================================
``POST /hello``                             Hello → Welcome
``POST /heartbeat``                         Heartbeat → Orders (idle workers too)
``POST /attempts/{id}/claim``               Claim → Assignment; 409 when not placed here
``POST /attempts/{id}/report``              Report → Orders; renews the lease; 409 ends the child
``POST /attempts/{id}/checkpoints``         CheckpointPublished → 204
``POST /attempts/{id}/finish``              Finish → Finished; 409 when the lease is not its own
==========================================  =====================================

Blobs travel by the transfer routes (``/blobs``, ``/uploads``), the same under ``/agent/v1`` and
``/api/v1``: see espalier.transfer.

Runner → child: one EngineTask as one JSON line on stdin, then Order lines; EOF means "end".
Child → runner: one Event per JSON line on the file descriptor named in ``ESPALIER_EVENTS_FD``.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from espalier.specs import Spec
from espalier.states import ArtifactKind, Kind, Reason


class Message(BaseModel):
    """Frozen; unknown keys are ignored, so that an older reader survives a newer writer."""

    model_config = ConfigDict(frozen=True, extra="ignore")


#: Blobs of its cache that a worker tells the control plane of: the largest.
MAX_HOLDINGS = 5000

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, lt=1 << 62)]
#: Blobs in a worker's cache: sha256 → bytes.
Holdings = dict[Sha256, Size]


# --- Machines -----------------------------------------------------------------------------


class Machine(Message):
    """What a worker runs on. Bytes; ``memory_limit`` is what a job may use."""

    hostname: str
    platform: str  # "macOS 26.1", "Linux 6.1"
    chip: str  # "Apple M3 Ultra", "x86_64 (2 cores)"
    memory_total: int
    memory_limit: int
    disk_free: int
    versions: dict[str, str] = {}  # espalier, python, mlx, mlx-lm
    on_battery: bool | None = None


class Held(Message):
    """An attempt that an earlier process of this worker left on its disk, unfinished."""

    attempt_id: str
    boot_id: str  # of the process that had claimed it


class Hello(Message):
    """A worker process has started. ``boot_id`` is new at each start of the process.

    ``installation`` names the data directory it runs from: two of them at once under one name
    are two machines with one token, and the second is refused. ``blobs`` are those in its cache,
    all of them or the largest; None from a worker that does not tell. Where it serves them to
    others on the LAN it says at which address, and a key of this process (espalier.tickets).
    """

    boot_id: str
    machine: Machine
    slots: int = 1
    installation: str | None = None
    held: tuple[Held, ...] = ()
    blobs: Holdings | None = None
    shares_url: str | None = Field(None, max_length=200, pattern=r"^http://[!-~]+$")
    shares_key: str | None = Field(None, min_length=32, max_length=64)


class Welcome(Message):
    """``queue`` is the Celery queue that this worker alone consumes.

    ``inherited`` are those of the held attempts that this process may still report for, publish
    and finish, under its own ``boot_id``; nothing runs for them any more.
    """

    worker_id: str
    name: str
    queue: str
    broker_url: str
    lease_seconds: float
    report_seconds: float
    inherited: tuple[str, ...] = ()


class Heartbeat(Message):
    """``added`` and ``removed`` are what has changed in the cache since it was told last; what was

    not answered is told again. ``blobs`` is now and then the whole of it, as in Hello.
    """

    boot_id: str
    machine: Machine | None = None
    running: tuple[str, ...] = ()  # attempt ids this worker believes it holds
    blobs: Holdings | None = None
    added: Holdings = {}
    removed: tuple[Sha256, ...] = ()


class Order(Message):
    """``cancel`` and ``pause`` checkpoint and end an attempt; ``drain`` ends the worker after its

    jobs. After ``pause`` the job goes on later, perhaps elsewhere.
    """

    order: Literal["cancel", "pause", "drain"]
    attempt_id: str | None = None


class Orders(Message):
    orders: tuple[Order, ...] = ()
    report_seconds: float = 5.0  # shorter while somebody watches
    lease_seconds: float = 180.0


# --- Files --------------------------------------------------------------------------------


class FileEntry(Message):
    """One file of an artifact: its path inside it and its blob."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Input(Message):
    """An input, resolved: files by blob, or a repository of the upstream hub."""

    role: str  # model, data, adapter
    ref: str
    kind: ArtifactKind
    commit: str
    files: tuple[FileEntry, ...] = ()
    hub_repo: str | None = None
    hub_revision: str | None = None


class Source(Message):
    """Another worker that holds a blob, and the ticket that it gives it out for."""

    sha256: Sha256
    url: str
    ticket: str
    name: str = ""


class Checkpoint(Message):
    """Adapter + optimizer + RNG + data cursor at ``step``, from which another continues."""

    step: int
    files: tuple[FileEntry, ...]


# --- An attempt ---------------------------------------------------------------------------


class Claim(Message):
    boot_id: str


class Assignment(Message):
    """The answer to a claim: everything the attempt needs.

    ``sources`` may be asked for blobs before the control plane is, in this order.
    """

    attempt_id: str
    attempt_number: int
    job_id: str
    kind: Kind
    spec: Spec
    inputs: tuple[Input, ...]
    resume: Checkpoint | None = None
    sources: tuple[Source, ...] = ()
    lease_seconds: float
    report_seconds: float


class LogChunk(Message):
    """A piece of the child's stdout and stderr; ``offset`` in bytes from the attempt's start."""

    offset: int
    text: str


class Report(Message):
    """A batch, keyed ``(attempt, seq)``: report, heartbeat and control in one call."""

    boot_id: str
    seq: int = Field(ge=1)
    events: tuple["Event", ...] = ()
    log: tuple[LogChunk, ...] = ()
    memory_bytes: int | None = None  # the child's, sampled from outside
    peak_memory_bytes: int | None = None


class CheckpointPublished(Message):
    """A checkpoint whose blobs are all uploaded."""

    boot_id: str
    step: int
    files: tuple[FileEntry, ...]


class OutputManifest(Message):
    """One output of an attempt, its blobs uploaded. ``meta`` goes into the version."""

    role: str
    kind: ArtifactKind
    files: tuple[FileEntry, ...]
    meta: dict[str, Any] = {}


class Failure(Message):
    """Why it failed, for a person: the sentence and the next step."""

    code: Reason
    message: str
    hint: str | None = None


class Finish(Message):
    boot_id: str
    state: Literal["succeeded", "failed", "cancelled"]
    reason: Reason = Reason.OK
    error: Failure | None = None
    outputs: tuple[OutputManifest, ...] = ()
    peak_memory_bytes: int | None = None


class Finished(Message):
    """``outputs`` maps role to the published reference ``project/name@vN``."""

    job_state: str
    outputs: dict[str, str] = {}


# --- The child ----------------------------------------------------------------------------


class EngineTask(Message):
    """What the child gets on stdin. Paths are absolute directories on this machine."""

    attempt_id: str
    kind: Kind
    spec: Spec
    inputs: dict[str, str]  # role → directory
    output_dir: str
    scratch_dir: str
    resume_dir: str | None = None
    resume_step: int = 0
    memory_limit: int | None = None


class PhaseEvent(Message):
    """What the child is doing now: loading, training, validating, testing, saving, proving."""

    type: Literal["phase"] = "phase"
    name: str
    time: float


class ProgressEvent(Message):
    type: Literal["progress"] = "progress"
    done: int
    total: int
    unit: str  # "steps", "batches", "tensors", "tokens"
    time: float


class MetricsEvent(Message):
    """Values at a step: train_loss, val_loss, tokens_per_second, learning_rate,

    peak_memory_bytes; an eval's test_loss, perplexity, tokens.
    """

    type: Literal["metrics"] = "metrics"
    step: int
    values: dict[str, float]
    time: float


class CheckpointEvent(Message):
    """A checkpoint stands complete in ``directory``; the runner publishes and removes it."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    directory: str
    time: float


class OutputEvent(Message):
    """An output stands complete in ``directory``; nothing writes there any more."""

    type: Literal["output"] = "output"
    role: str
    kind: ArtifactKind
    directory: str
    meta: dict[str, Any] = {}
    time: float


class ProofEvent(Message):
    """A claim about the output, measured. ``ok`` is None when it was recorded, not judged."""

    type: Literal["proof"] = "proof"
    name: str
    value: float
    limit: float | None = None
    ok: bool | None = None
    detail: str = ""
    time: float


class TableEvent(Message):
    """A table for people: a checkpoint sweep, before and after quantization."""

    type: Literal["table"] = "table"
    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | bool | None, ...], ...]
    time: float


class NoticeEvent(Message):
    """Something a person should know: a clamped setting, a truncated row, a fallback."""

    type: Literal["notice"] = "notice"
    level: Literal["info", "warning"] = "info"
    message: str
    time: float


class ErrorEvent(Message):
    type: Literal["error"] = "error"
    code: Reason
    message: str
    hint: str | None = None
    time: float


class DoneEvent(Message):
    """The last line: every output was announced. ``state`` is cancelled after a cancel order."""

    type: Literal["done"] = "done"
    state: Literal["succeeded", "cancelled"]
    time: float


Event = Annotated[
    PhaseEvent
    | ProgressEvent
    | MetricsEvent
    | CheckpointEvent
    | OutputEvent
    | ProofEvent
    | TableEvent
    | NoticeEvent
    | ErrorEvent
    | DoneEvent,
    Field(discriminator="type"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
Report.model_rebuild()
