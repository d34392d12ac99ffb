"""The tries of a job in words: how each ended, what it cost, and what follows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.figures import duration, number, size
from espalier.reasons import account
from espalier.settings import Settings
from espalier.states import ATTEMPT_LIVE, JOB_ENDED, AttemptState, Reason
from web.pages.format import between

#: Ends that a person or a more urgent job asked for: drawn as a pause.
_PAUSES = (Reason.PAUSED, Reason.PREEMPTED)


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt as the page tells it. ``shape`` is its icon, ``details`` stand small below."""

    id: str
    number: int
    worker: str
    shape: str
    said: str
    error: str
    next: str
    details: tuple[str, ...]
    log: str


def tries(job: Mapping[str, Any]) -> list[Try]:
    """Return a job's attempts, newest first; none when there is nothing to tell but the first."""
    attempts = job["attempts"]
    ends = {attempt["reason"] for attempt in attempts} - {None, Reason.OK}
    if not (ends or job["ladder"] or len(attempts) > 1):
        return []
    return [_try(job, attempt, attempt is attempts[-1]) for attempt in reversed(attempts)]


def spent(job: Mapping[str, Any], config: Settings) -> str:
    """Return what the attempts cost: tries, and losses that are the machines' own."""
    words = f"{job['charged']} of {job['max_attempts']} tries used"
    if job["lost"]:
        words += f", {job['lost']} ended by machines (set aside at {config.lost_limit})"
    return words


def _try(job: Mapping[str, Any], attempt: Mapping[str, Any], newest: bool) -> Try:
    live = attempt["state"] in ATTEMPT_LIVE
    meant = account(attempt["reason"])
    goes_on = newest and not live and job["state"] not in JOB_ENDED
    said = ("It runs." if attempt["started_at"] else "Its worker has not begun.") if live else ""
    error = (attempt["error"] or {}).get("message", "")
    return Try(
        id=attempt["id"],
        number=attempt["number"],
        worker=attempt["worker"],
        shape="paused" if attempt["reason"] in _PAUSES else attempt["state"],
        said=said or meant.happened,
        error=error if error != meant.happened else "",
        next=meant.next if goes_on else "",
        details=tuple(_details(job, attempt)),
        log="stacks in its log" if attempt["reason"] == Reason.HUNG else "log",
    )


def _details(job: Mapping[str, Any], attempt: Mapping[str, Any]) -> Iterator[str]:
    if attempt["resumed_from_step"]:
        yield f"resumed from step {number(attempt['resumed_from_step'])}"
    if attempt["started_at"] and attempt["finished_at"]:  # while it runs the head tells it
        yield duration(between(attempt["started_at"], attempt["finished_at"]))
    if attempt["peak_memory_bytes"]:
        yield f"{size(attempt['peak_memory_bytes'])} at most"
    if attempt["charged"]:
        yield "counted as a try"
    elif attempt["state"] in (AttemptState.FAILED, AttemptState.LOST):
        yield "not counted as a try"
