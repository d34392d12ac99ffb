"""Why a child ended: from its exit, its last words, its memory, and what the machine says of it.

Pure. Each reason has a sentence and a next step for whoever reads it at two in the morning.
"""

import re
import signal
from dataclasses import dataclass

from espalier.messages import Failure
from espalier.states import Reason
from worker.watchdog import Hang

#: A killed child that held this part of its memory limit was most likely killed for it.
_NEAR_LIMIT = 0.9

_MEMORY_HINT = (
    "With on_oom: adapt a job takes smaller steps by itself. By hand: lower batch_size or"
    " max_seq_length, turn grad_checkpoint on, train on a quantized base, or use a worker with"
    " more memory."
)
_AGAIN = "It is tried again, from its last checkpoint."
_GPU_HINT = f"{_AGAIN} If it happens on one Mac only, restart that Mac, then update its macOS."


@dataclass(frozen=True, slots=True)
class _Sign:
    """A phrase, in the log or in an exception, that tells more than the exit status does."""

    pattern: re.Pattern[str]
    reason: Reason
    message: str
    hint: str


def _sign(pattern: str, reason: Reason, message: str, hint: str) -> _Sign:
    return _Sign(re.compile(pattern, re.IGNORECASE), reason, message, hint)


#: The first that is found counts. What MLX, Metal, Python, Rust's safetensors and libc++ say.
_SIGNS = (
    _sign(
        r"CallbackErrorOutOfMemory|Insufficient Memory|\[(?:metal::)?malloc\]|\bMemoryError\b"
        r"|bad_alloc|Cannot allocate memory|Unable to allocate|out of memory"
        r"|Resource limit \(\d+\) exceeded",
        Reason.OUT_OF_MEMORY,
        "The job ran out of memory",
        _MEMORY_HINT,
    ),
    _sign(
        r"CallbackErrorTimeout|Caused GPU Timeout Error|Impacting Interactivity",
        Reason.METAL_ABORT,
        "macOS ended the job's GPU work because one piece of it took too long for the display",
        f"{_AGAIN} Let the display sleep on this Mac, or lower batch_size or max_seq_length so"
        " that each step is shorter.",
    ),
    _sign(
        r"CallbackErrorHang|CallbackErrorPageFault|GPU (?:Hang|Address Fault) Error",
        Reason.METAL_ABORT,
        "The GPU hung or failed in the job's work",
        _GPU_HINT,
    ),
    _sign(
        r"InnocentVictim|victim of GPU error|SubmissionsIgnored|causing prior/excessive GPU errors",
        Reason.METAL_ABORT,
        "Metal dropped the job's work after an error of the GPU, perhaps of another program's",
        _GPU_HINT,
    ),
    _sign(
        r"CommandBufferCallbackError|\[METAL\]|MTLCommandBuffer|command buffer was aborted"
        r"|Internal Error \(00000",
        Reason.METAL_ABORT,
        "Metal aborted the job's work",
        _GPU_HINT,
    ),
    _sign(
        r"No space left on device|Errno 28\b|\bENOSPC\b|StorageFull"
        r"|quota exceeded|Errno 122\b|\bEDQUOT\b|\[write\] Unable to write",
        Reason.DISK_FULL,
        "The worker's disk is full, or its quota is used up",
        f"{_AGAIN} Free space on the worker's disk, or keep fewer checkpoints (a larger"
        " save_every).",
    ),
    _sign(
        r"Stale file handle|Input/output error|Errno 5\b",
        Reason.INPUT_LOST,
        "A disk of the worker failed to read or write",
        f"{_AGAIN} If it happens on one worker only, check its disk and its mounts.",
    ),
)


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended. Memory in bytes.

    ``status`` is as ``Popen.returncode`` has it (negative: a signal), None when it does not end.
    ``oom_kills`` counts what the system ended for memory in its control group meanwhile,
    ``jettisoned`` is what macOS says about that.
    """

    status: int | None
    tail: str  # the end of its log
    peak_memory: int = 0
    memory_limit: int | None = None
    oom_kills: int = 0
    jettisoned: str | None = None


def recognise(text: str, how: str) -> Failure | None:
    """Return the failure that ``text`` names, if it is a known one; ``how`` tells what was seen."""
    for sign in _SIGNS:
        if sign.pattern.search(text):
            return Failure(code=sign.reason, message=f"{sign.message} ({how}).", hint=sign.hint)
    return None


def diagnose(death: Death, said: Failure | None = None) -> Failure:
    """Return why a child failed; ``said`` is what it told itself, if it could."""
    if said and not (death.oom_kills and said.code in (Reason.CODE_ERROR, Reason.PROOF_FAILED)):
        return said
    if death.status is None:
        return Failure(
            code=Reason.KILLED,
            message="The job's process was killed and does not end: the system holds it.",
            hint=f"{_AGAIN} Restart this worker's machine: the process may still hold its GPU.",
        )
    how = _how(death.status)
    killed = death.status == -signal.SIGKILL
    if said or (killed and (death.oom_kills or death.jettisoned)):
        return _ended_by_system(death, said.message if said else how)
    if found := recognise(death.tail, how):
        return found
    if killed:
        return _killed(how, death)
    if death.status < 0:
        return Failure(
            code=Reason.KILLED,
            message=f"The job's process died: {how}.{_last_words(death.tail)}",
            hint=f"{_AGAIN} The end of the log may say more.",
        )
    return Failure(
        code=Reason.CODE_ERROR,
        message=f"The job's process ended with {how} before its work was done."
        f"{_last_words(death.tail)}",
        hint="The end of the log has what it said last.",
    )


def hung(hang: Hang, *, stopped: bool) -> Failure:
    """Return the failure of a child that hangs; ``stopped``: a signal keeps it from running."""
    if stopped:
        return Failure(
            code=Reason.HUNG,
            message=f"The job's process was stopped by a signal and made {hang}.",
            hint=f"{_AGAIN} Somebody or something on that machine stopped it (kill -STOP, a"
            " debugger); cancel or pause a job on its page instead.",
        )
    return Failure(
        code=Reason.HUNG,
        message=f"The job hung: it made {hang}.",
        hint=f"{_AGAIN} The end of the log has what its threads were doing. If it happens on one"
        " machine only, restart that one; where a step honestly takes so long, raise"
        " ESPALIER_HANG_FLOOR_SECONDS (or ESPALIER_HANG_FIRST_SECONDS) on the worker.",
    )


def too_much(memory: int, limit: int) -> Failure:
    """Return the failure of a child that was ended because it held more than its limit (bytes)."""
    return Failure(
        code=Reason.OUT_OF_MEMORY,
        message=f"The job held {memory:,} bytes of memory, {memory - limit:,} more than the"
        f" {limit:,} it may use on this worker, and was ended.",
        hint=_MEMORY_HINT,
    )


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _ended_by_system(death: Death, how: str) -> Failure:
    told = death.jettisoned or "a control group reached its limit"
    return Failure(
        code=Reason.OUT_OF_MEMORY,
        message=f"The system ended the job for memory ({told}; {how}); it held"
        f" {death.peak_memory:,} bytes at most when it was looked at.",
        hint=f"{_MEMORY_HINT} If other programs on that machine need memory too, give jobs less"
        " (ESPALIER_MEMORY_LIMIT_BYTES).",
    )


def _killed(how: str, death: Death) -> Failure:
    limit = death.memory_limit
    if limit and death.peak_memory >= _NEAR_LIMIT * limit:
        return Failure(
            code=Reason.OUT_OF_MEMORY,
            message=f"The job was {how} while it held {death.peak_memory:,} of the {limit:,}"
            " bytes it may use: it ran out of memory.",
            hint=_MEMORY_HINT,
        )
    return Failure(
        code=Reason.KILLED,
        message=f"The job was {how}; the system does that when memory is short, and so do people.",
        hint=f"{_AGAIN} If it happens again: {_MEMORY_HINT}",
    )


def _last_words(tail: str) -> str:
    # Python's own last words end with a list of modules; their first line is the one that tells.
    tail = next(iter(re.findall(r"^Fatal Python error: .*", tail, re.MULTILINE)), tail)
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return f" It said last: {lines[-1][:300]}" if lines else ""
