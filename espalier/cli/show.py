"""Jobs as people read them."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from espalier.cli.common import plain, size_text, stdout, table
from espalier.reasons import account
from espalier.states import JobState, Reason

Job = dict[str, Any]

_COLOURS = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.RUNNING: "cyan",
}
_NUMBERS = {
    "train_loss": "loss {:.3f}",
    "val_loss": "val {:.3f}",
    "test_loss": "test {:.3f}",
    "perplexity": "ppl {:.2f}",
    "tokens_per_second": "{:,.0f} tok/s",
}


def numbers(job: Job) -> str:
    """The values people watch, as far as the job has them."""
    values = job["metrics"] or {}
    known = [(text, values.get(name)) for name, text in _NUMBERS.items()]
    return "  ".join(text.format(value) for text, value in known if value is not None)


def announce(jobs: Iterable[Job], url: str) -> None:
    """Say what was submitted, and where it can be watched."""
    for job in jobs:
        stdout().print(f"{job['kind']} [bold]{job['id']}[/] {job['state']}  {url}/jobs/{job['id']}")


def summary(jobs: Sequence[Job]) -> None:
    """Say what became of jobs: state, outputs, proofs, and why one failed."""
    for job in jobs:
        outputs = "  ".join(output["ref"] for output in job["outputs"])
        words = (job["kind"], job["id"], _state(job), escape(outputs), numbers(job))
        stdout().print("  ".join(word for word in words if word))
        for proof in job["proofs"]:
            stdout().print(f"  {proof_text(proof)}")
        if job["error"]:
            stdout().print(f"  [red]{escape(plain(job['error']['message']))}[/]")
            if job["error"].get("hint"):
                stdout().print(f"  {escape(plain(job['error']['hint']))}")


def proof_text(proof: dict[str, Any]) -> str:
    mark = {True: "[green]proved[/]", False: "[red]refused[/]", None: "noted"}[proof["ok"]]
    limit = f" (limit {proof['limit']:g})" if proof["limit"] is not None else ""
    return f"{mark} {escape(plain(proof['name']))}: {proof['value']:.6g}{limit}"


def shown(job: Job) -> str:
    """The one word for where a job is: its state, or that it is held back."""
    return "paused" if job.get("paused") else str(job["state"])


def _state(job: Job) -> str:
    colour = "yellow" if job.get("paused") else _COLOURS.get(JobState(job["state"]))
    return f"[{colour}]{shown(job)}[/]" if colour else shown(job)


def job_table(jobs: Iterable[Job]) -> None:
    columns = ("id", "kind", "state", "project", "name", "worker", "created", "numbers")
    table(
        columns,
        (
            (
                job["id"],
                job["kind"],
                shown(job),
                job["project"],
                job["name"],
                job["worker"],
                clock(job["created_at"]),
                numbers(job),
            )
            for job in jobs
        ),
    )


def job_page(job: Job) -> None:
    """Everything about one job."""
    console = stdout()
    console.print(f"[bold]{job['kind']} {job['id']}[/]  {_state(job)}  {numbers(job)}")
    for label in ("name", "project", "worker", "created_at", "started_at", "finished_at"):
        if job[label]:
            console.print(f"  {label.removesuffix('_at'):<9} {escape(plain(str(job[label])))}")
    for item in job["inputs"]:
        console.print(f"  {item['role']:<9} {escape(item['ref'])}  [dim]{item['commit'] or ''}[/]")
    _attempts(console, job)
    if job["outputs"] or job["proofs"] or job["error"]:
        summary([job])
    for found in job.get("tables") or ():
        console.print(f"\n[bold]{escape(plain(found['name']))}[/]")
        table(found["columns"], ([_cell(cell) for cell in row] for row in found["rows"]))


def _attempts(console: Console, job: Job) -> None:
    """Every try: where, how it ended, what it counted; and what the ladder changed between them."""
    rungs = {rung["attempt"]: rung for rung in job["ladder"]}
    for attempt in job["attempts"]:
        ended = f"{attempt['state']} {attempt['reason'] or ''}".strip()
        words = [attempt["id"], attempt["worker"], ended, size_text(attempt["peak_memory_bytes"])]
        if attempt["resumed_from_step"]:
            words.append(f"from step {attempt['resumed_from_step']}")
        if attempt["charged"]:
            words.append("counted as a try")
        console.print(f"  attempt   {'  '.join(word for word in words if word)}")
        if attempt["reason"] not in (None, Reason.OK):
            console.print(f"            [dim]{account(attempt['reason']).happened}[/]")
        if attempt["id"] in rungs:
            console.print(f"  ladder    {escape(plain(rungs[attempt['id']]['message']))}")
    if job["charged"] or job["lost"]:
        lost = f", {job['lost']} ended by machines" if job["lost"] else ""
        console.print(f"  tries     {job['charged']} of {job['max_attempts']} used{lost}")


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def clock(stamp: str | None) -> str:
    """``2026-11-20T16:42:13.123456Z`` as ``2026-11-20 16:42:13``."""
    return (stamp or "")[:19].replace("T", " ")
