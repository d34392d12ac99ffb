"""Why a child ended without saying so: from its exit status, its last words and its memory."""

import re
import signal
from dataclasses import dataclass

from espalier.messages import Failure
from espalier.states import Reason

#: A killed child that held this part of its memory limit was most likely killed for it.
_NEAR_LIMIT = 0.9

_MEMORY_HINT = (
    "Halve batch_size and double grad_accumulation_steps, lower max_seq_length, turn"
    " grad_checkpoint on, or use a machine with more memory."
)


@dataclass(frozen=True, slots=True)
class _Sign:
    """A phrase in the log that tells more than the exit status does."""

    pattern: re.Pattern[str]
    reason: Reason
    message: str
    hint: str


_SIGNS = (
    _Sign(
        re.compile(
            r"kIOGPUCommandBufferCallbackErrorOutOfMemory|Insufficient Memory"
            r"|\[(?:metal::)?malloc\]|MemoryError|std::bad_alloc|Cannot allocate memory"
            r"|Resource limit \(\d+\) exceeded",
            re.IGNORECASE,
        ),
        Reason.OUT_OF_MEMORY,
        "The job ran out of memory",
        _MEMORY_HINT,
    ),
    _Sign(
        re.compile(r"kIOGPUCommandBufferCallbackErrorTimeout|Impacting Interactivity"),
        Reason.KILLED,
        "macOS ended the job's GPU work because it kept the display waiting",
        "Let the display sleep on this Mac, or lower batch_size so that each step is shorter.",
    ),
    _Sign(
        re.compile(r"kIOGPUCommandBufferCallbackError|\[METAL\]|MTLCommandBuffer"),
        Reason.KILLED,
        "Metal aborted the job",
        "It is tried again. If it happens on one Mac only, restart that Mac.",
    ),
    _Sign(
        re.compile(r"No space left on device|Errno 28\b"),
        Reason.CODE_ERROR,
        "The worker's disk is full",
        "Free space on the worker's disk, or lower the number of checkpoints (save_every).",
    ),
)


def diagnose(
    status: int, tail: str, peak_memory: int = 0, memory_limit: int | None = None
) -> Failure:
    """Return the failure of a child that sent no error event.

    ``status`` is as ``Popen.returncode`` has it (negative: a signal), ``tail`` the end of its log,
    memory in bytes.
    """
    how = _how(status)
    for sign in _SIGNS:
        if sign.pattern.search(tail):
            return Failure(code=sign.reason, message=f"{sign.message} ({how}).", hint=sign.hint)
    if status == -signal.SIGKILL:
        return _killed(how, peak_memory, memory_limit)
    if status < 0:
        return Failure(
            code=Reason.KILLED,
            message=f"The job's process died: {how}.{_last_words(tail)}",
            hint="It is tried again; the end of the log may say more.",
        )
    return Failure(
        code=Reason.CODE_ERROR,
        message=f"The job's process ended with {how} before its work was done.{_last_words(tail)}",
        hint="The end of the log has what it said last.",
    )


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _killed(how: str, peak_memory: int, memory_limit: int | None) -> Failure:
    if memory_limit and peak_memory >= _NEAR_LIMIT * memory_limit:
        return Failure(
            code=Reason.OUT_OF_MEMORY,
            message=f"The job was {how} while it held {peak_memory:,} of the {memory_limit:,}"
            " bytes it may use: it ran out of memory.",
            hint=_MEMORY_HINT,
        )
    return Failure(
        code=Reason.KILLED,
        message=f"The job was {how}; the system does that when memory is short, and so do people.",
        hint=f"It is tried again. If it happens again: {_MEMORY_HINT}",
    )


def _last_words(tail: str) -> str:
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return f" It said last: {lines[-1][:300]}" if lines else ""
