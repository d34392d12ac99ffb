"""Why an attempt ended, in words: one sentence each, and what happens next.

Pages and the command line say the same, so it is told here. A sentence names no job and no
worker: what is particular about a failure is its error's message and hint.
"""

from dataclasses import dataclass

from espalier.states import Reason


@dataclass(frozen=True, slots=True)
class Account:
    """``happened`` is a sentence in the past, ``next`` what follows while the job is open."""

    happened: str
    next: str = ""


_AGAIN = "It goes on from the last checkpoint, on another worker if there is one."
_LATER = "It is tried again after a pause, until its tries are spent."
_NEVER = "It is not tried again: it would end the same way."

ACCOUNTS: dict[Reason, Account] = {
    Reason.OK: Account("It made what was asked for."),
    Reason.CANCELLED: Account("A person cancelled it.", "Retry goes on from the last checkpoint."),
    Reason.UPSTREAM: Account(
        "A job that it needs did not succeed.", "It comes back when that job is retried."
    ),
    Reason.BAD_INPUT: Account("Its data, model or settings cannot work.", _NEVER),
    Reason.PROOF_FAILED: Account(
        "What it made failed its own proof, so nothing was published.", _NEVER
    ),
    Reason.NAN_LOSS: Account("The loss was no number any more.", _NEVER),
    Reason.DIVERGED: Account("The train loss rose far above its lowest and stayed there.", _NEVER),
    Reason.OUT_OF_MEMORY: Account(
        "Memory ended.",
        "It goes on with less held at once, and with the same result; where nothing can be saved"
        " any more, it is not tried again.",
    ),
    Reason.CODE_ERROR: Account("The program raised an error.", _LATER),
    Reason.KILLED: Account("The system killed the process.", _AGAIN),
    Reason.HUNG: Account(
        "It made no progress, so its stacks were written to the log and it was killed.", _AGAIN
    ),
    Reason.METAL_ABORT: Account("The GPU's driver gave up.", _AGAIN),
    Reason.KERNEL_PANIC: Account("The machine itself fell over.", _AGAIN),
    Reason.DISK_FULL: Account("The worker's disk was full.", _AGAIN),
    Reason.INPUT_LOST: Account("An input could not be fetched.", _AGAIN),
    Reason.LEASE_LOST: Account("The worker stopped reporting.", _AGAIN),
    Reason.UNCLAIMED: Account("The worker never began it.", "It is given to another worker."),
    Reason.WORKER_CRASHED: Account("The worker's process ended without a word.", _AGAIN),
    Reason.WORKER_STOPPED: Account("The worker was told to stop.", _AGAIN),
    Reason.PAUSED: Account("A person paused it.", "Resume goes on from the last checkpoint."),
    Reason.PREEMPTED: Account(
        "It made way for a more urgent job.", "It is next of its own priority."
    ),
}


def account(reason: str | None) -> Account:
    """Return what a reason means; a newer version's, that is not known here, by its name."""
    try:
        return ACCOUNTS[Reason(reason or "")]
    except ValueError:
        return Account(f"It ended: {reason.replace('_', ' ')}." if reason else "")
