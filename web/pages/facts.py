"""The numbers at the top of a job's page: which ones matter for its kind, and when it will end."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from espalier.figures import METRICS, duration, number, size
from espalier.states import JOB_ENDED, JobState
from web.pages.format import between, clock, moment


@dataclass(frozen=True, slots=True)
class Fact:
    """One number with its name; ``more`` stands small behind it."""

    name: str
    value: str
    more: str = ""


def remaining(job: Mapping[str, Any], pace: tuple[int, float] | None) -> float | None:
    """Return the seconds a running job still needs, from its measured pace; None when unknown.

    ``pace`` is (steps, seconds) of the running attempt; without it the part that is done since
    the attempt began is what counts.
    """
    progress = job["progress"]
    if job["state"] != JobState.RUNNING or not progress or not progress["total"]:
        return None
    left = progress["total"] - progress["done"]
    if pace and progress["unit"] == "steps":
        steps, seconds = pace
        return float(left * seconds / steps)
    attempt = job["attempts"][-1] if job["attempts"] else None
    elapsed = between(attempt["started_at"], None) if attempt else None
    done = progress["done"] - ((attempt and attempt["resumed_from_step"]) or 0)
    return float(left * elapsed / done) if elapsed and done > 0 else None


def facts(job: Mapping[str, Any], left: float | None) -> list[Fact]:
    """Return the facts of a job's document."""
    found = []
    if progress := job["progress"]:
        share = f"{progress['done'] / progress['total']:.0%}" if progress["total"] else "–"
        of = f"{number(progress['done'])} / {number(progress['total'])} {progress['unit']}"
        found.append(Fact("progress", share, of))
    if left is not None:
        found.append(Fact("time left", f"≈ {duration(left)}"))
    metrics = job["metrics"]
    found += [Fact(name, number(metrics[key])) for key, name in METRICS.items() if key in metrics]
    if (memory := _memory(job)) is not None:
        found.append(memory)
    if job["started_at"]:
        word = "running for" if job["state"] == JobState.RUNNING else "since its start"
        found.append(Fact("took" if job["finished_at"] else word, _elapsed(job)))
    return found


def notice(job: Mapping[str, Any]) -> str:
    """Return why an open job does not simply go on, in a sentence; empty when it does."""
    state = job["state"]
    if state in JOB_ENDED:
        return ""
    running = state == JobState.RUNNING
    if job["cancel_requested_at"]:
        return "Cancelling: its worker writes a checkpoint and stops."
    if running and job["attempts"][-1]["preempt_requested_at"]:
        return "Making way for a more urgent job: its worker writes a checkpoint and stops."
    if job["pause_requested_at"]:
        if running:
            return "Pausing: its worker writes a checkpoint and stops."
        return "Paused: no worker gets it. Resume goes on from its last checkpoint."
    if state == JobState.QUEUED and job["not_before"]:
        at = moment(job["not_before"])
        if at and at > datetime.now(UTC):
            return f"The last attempt failed: it is tried again at {clock(at)}."
    if state == JobState.QUEUED and job["min_memory_bytes"]:
        needed = size(job["min_memory_bytes"])
        ran_out = any(rung["rung"] == "min_memory_bytes" for rung in job["ladder"])
        why = "ran out of memory on less" if ran_out else "is predicted to need that"
        return f"Waits for a worker with at least {needed} to give: it {why}."
    return ""


def _memory(job: Mapping[str, Any]) -> Fact | None:
    peaks = [a["peak_memory_bytes"] for a in job["attempts"] if a["peak_memory_bytes"]]
    current = job["attempts"][-1]["memory_bytes"] if job["attempts"] else None
    if not peaks:
        return None
    return Fact("peak memory", size(max(peaks)), f"now {size(current)}" if current else "")


def _elapsed(job: Mapping[str, Any]) -> str:
    return duration(between(job["started_at"], job["finished_at"]))
