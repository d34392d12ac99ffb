"""Job and attempt states, and the only transitions there are (docs/state_machine.md)."""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is. Cancel is a flag on the job until its attempt has ended."""

    WAITING = "waiting"  # a job it depends on has not succeeded yet
    QUEUED = "queued"  # ready; the scheduler may place it
    RUNNING = "running"  # a worker holds its lease
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    """Where one try of a job on one worker is. Its id is the fencing token."""

    PLACED = "placed"  # given to a worker, not claimed yet
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"  # never claimed, or its lease ended


JOB_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.WAITING: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.SUCCEEDED: frozenset(),
    # `retry` brings an ended job back; nothing else does.
    JobState.FAILED: frozenset({JobState.QUEUED, JobState.WAITING}),
    JobState.CANCELLED: frozenset({JobState.QUEUED, JobState.WAITING}),
}

ATTEMPT_TRANSITIONS: dict[AttemptState, frozenset[AttemptState]] = {
    AttemptState.PLACED: frozenset(
        {AttemptState.RUNNING, AttemptState.CANCELLED, AttemptState.LOST}
    ),
    AttemptState.RUNNING: frozenset(
        {
            AttemptState.SUCCEEDED,
            AttemptState.FAILED,
            AttemptState.CANCELLED,
            AttemptState.LOST,
        }
    ),
    AttemptState.SUCCEEDED: frozenset(),
    AttemptState.FAILED: frozenset(),
    AttemptState.CANCELLED: frozenset(),
    # A worker that comes back before its job went elsewhere is adopted again.
    AttemptState.LOST: frozenset({AttemptState.RUNNING}),
}

JOB_ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
JOB_OPEN = frozenset(JobState) - JOB_ENDED
ATTEMPT_LIVE = frozenset({AttemptState.PLACED, AttemptState.RUNNING})


class Kind(StrEnum):
    """What a job does. Each kind is one Celery task, ``espalier.<kind>``."""

    TRAIN = "train"
    EVAL = "eval"
    QUANTIZE = "quantize"
    FUSE = "fuse"
    EXPORT = "export"


class ArtifactKind(StrEnum):
    DATASET = "dataset"
    MODEL = "model"
    ADAPTER = "adapter"
    GGUF = "gguf"
    REPORT = "report"


class Reason(StrEnum):
    """Why an attempt or a job ended as it did; each has one meaning and one treatment."""

    OK = "ok"
    CANCELLED = "cancelled"  # by a person
    UPSTREAM = "upstream"  # a job it depended on failed or was cancelled
    BAD_INPUT = "bad_input"  # data, model or spec cannot work; not retried
    PROOF_FAILED = "proof_failed"  # it ran, and what it made is not good enough; not retried
    NAN_LOSS = "nan_loss"  # not retried
    DIVERGED = "diverged"  # the train loss rose far above its lowest and stayed there; not retried
    OUT_OF_MEMORY = "out_of_memory"  # charged when the ladder has no rung left
    CODE_ERROR = "code_error"  # the engine raised
    KILLED = "killed"  # the child died by a signal it did not expect
    HUNG = "hung"  # the child made no progress; it was sampled and killed
    METAL_ABORT = "metal_abort"  # the GPU's driver gave up
    KERNEL_PANIC = "kernel_panic"  # the machine fell over while it ran
    DISK_FULL = "disk_full"  # of the worker
    INPUT_LOST = "input_lost"  # an input could not be fetched
    LEASE_LOST = "lease_lost"  # the worker stopped reporting
    UNCLAIMED = "unclaimed"  # the worker never claimed
    WORKER_CRASHED = "worker_crashed"  # its process ended without a word and was started again
    WORKER_STOPPED = "worker_stopped"  # the worker was told to stop
    PAUSED = "paused"  # by a person
    PREEMPTED = "preempted"  # for a job of higher priority


#: Failures of what was asked for: the same attempt would fail again. Of memory that ended only at
#: the foot of the ladder: else the next attempt is not the same.
NOT_RETRIED = frozenset(
    {
        Reason.BAD_INPUT,
        Reason.PROOF_FAILED,
        Reason.NAN_LOSS,
        Reason.DIVERGED,
        Reason.OUT_OF_MEMORY,
    }
)
#: Failures of machines: counted apart (``lost``), never charged to the user's ``max_attempts``.
MACHINE_FAULTS = frozenset(
    {
        Reason.KILLED,
        Reason.HUNG,
        Reason.METAL_ABORT,
        Reason.KERNEL_PANIC,
        Reason.DISK_FULL,
        Reason.INPUT_LOST,
        Reason.LEASE_LOST,
        Reason.UNCLAIMED,
        Reason.WORKER_CRASHED,
    }
)
#: What people asked for: counted nowhere.
NO_FAULTS = frozenset({Reason.WORKER_STOPPED, Reason.PAUSED, Reason.PREEMPTED})
NOT_CHARGED = MACHINE_FAULTS | NO_FAULTS
