"""``espalier jobs|job|logs|wait|cancel|pause|resume|retry|events``."""

import sys
import time
from typing import Annotated, Any

import typer

from espalier.cli.common import JsonFlag, connect, plain, print_json, stdout, table
from espalier.cli.follow import TICK, follow, outcome, view
from espalier.cli.show import clock, job_page, job_table, shown, summary
from espalier.client import Client
from espalier.states import JOB_ENDED, JobState, Kind

JobIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Jobs' ids.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id.")]


def register(app: typer.Typer) -> None:
    for name, command in (
        ("jobs", jobs),
        ("job", job),
        ("logs", logs),
        ("wait", wait),
        ("cancel", cancel),
        ("pause", pause),
        ("resume", resume),
        ("retry", retry),
        ("events", events),
    ):
        app.command(name)(command)


def jobs(
    state: Annotated[list[JobState] | None, typer.Option(help="May be given again.")] = None,
    paused: Annotated[
        bool | None, typer.Option("--paused/--not-paused", help="Held back by a person, or not.")
    ] = None,
    kind: Annotated[list[Kind] | None, typer.Option(help="May be given again.")] = None,
    project: Annotated[str | None, typer.Option()] = None,
    pipeline: Annotated[str | None, typer.Option(help="A pipeline's id.")] = None,
    search: Annotated[
        str | None, typer.Option("-q", "--search", help="In id, name and note.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    params = {
        "state": [s.value for s in state] if state else None,
        "kind": [k.value for k in kind] if kind else None,
        "project": project,
        "pipeline": pipeline,
        "q": search,
        "paused": paused,
        "limit": limit,
    }
    with connect() as client:
        answer = client.get("/api/v1/jobs", params)
    print_json(answer) if as_json else job_table(answer["jobs"])


def job(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Show one job: inputs, attempts, outputs, proofs."""
    with connect() as client:
        found = client.get(f"/api/v1/jobs/{job_id}")
    print_json(found) if as_json else job_page(found)


def wait(
    ids: JobIds,
    as_json: JsonFlag = False,
) -> None:
    """Wait until the jobs have ended; exit 0 (success), 1 (failure) or 3 (cancelled)."""
    with connect() as client:
        ended = follow(client, ids, view())
    if as_json:
        print_json({"jobs": ended} if len(ended) > 1 else ended[0])
    else:
        summary(ended)
    raise typer.Exit(outcome(ended))


def cancel(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Cancel a job; a running one saves a checkpoint first."""
    _act(job_id, "cancel", as_json)


def pause(ids: JobIds, as_json: JsonFlag = False) -> None:
    """Hold jobs back until they are resumed; a running one saves a checkpoint first."""
    _act_on(ids, "pause", as_json)


def resume(ids: JobIds, as_json: JsonFlag = False) -> None:
    """Let paused jobs go on, each from its last checkpoint."""
    _act_on(ids, "resume", as_json)


def retry(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
    _act(job_id, "retry", as_json)


def _act(job_id: str, action: str, as_json: bool) -> None:
    _act_on([job_id], action, as_json)


def _act_on(ids: list[str], action: str, as_json: bool) -> None:
    """Ask the same of several jobs; the first refusal ends it, and says which job it was."""
    done: list[dict[str, Any]] = []
    with connect() as client:
        for job_id in ids:
            done.append(client.post(f"/api/v1/jobs/{job_id}/{action}"))
            if not as_json:
                stdout().print(f"{job_id} {_became(done[-1], action)}")
    if as_json:
        print_json({"jobs": done} if len(done) > 1 else done[0])


def _became(job: dict[str, Any], action: str) -> str:
    running = job["state"] == JobState.RUNNING
    if action == "cancel" and job["state"] not in JOB_ENDED:
        return "is being cancelled"
    if action == "pause" and running:
        return "is being paused: its worker saves a checkpoint first"
    if action == "resume" and running:
        return "goes on: its worker had not stopped yet"
    return shown(job)


def events(job_id: JobId, as_json: JsonFlag = False) -> None:
    """List what happened to a job, oldest first."""
    found: list[dict[str, Any]] = []
    with connect() as client:
        while page := _events(client, job_id, found[-1]["id"] if found else 0):
            found += page
    if as_json:
        print_json({"events": found})
    else:
        rows = ((clock(e["time"]), e["type"], e["attempt"], e["message"]) for e in found)
        table(("time", "type", "attempt", "message"), rows)


def _events(client: Client, job_id: str, after: int) -> list[dict[str, Any]]:
    page: list[dict[str, Any]] = client.get(f"/api/v1/jobs/{job_id}/events", {"after": after})[
        "events"
    ]
    return page


def logs(
    job_id: JobId,
    follow_: Annotated[bool, typer.Option("-f", "--follow", help="Until the job ends.")] = False,
    attempt: Annotated[str | None, typer.Option(help="An attempt's id; default: the last.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print what a job's program wrote; with -f on and on, through every further attempt."""
    texts: list[str] = []
    offset = 0
    with connect() as client:
        while True:
            page = client.get(f"/api/v1/jobs/{job_id}/logs", {"attempt": attempt, "offset": offset})
            attempt, offset = page["attempt"], page["next_offset"]
            texts.append(_write(page["text"], silent=as_json))
            if page["text"]:
                continue
            if not follow_:
                break
            if page["ended"]:
                attempt, offset, over = _next(client, job_id, attempt, offset)
                if over:
                    break
            time.sleep(TICK)
    if as_json:
        print_json({"attempt": attempt, "text": "".join(texts)})


def _write(text: str, *, silent: bool) -> str:
    if silent:
        return text
    sys.stdout.write(plain(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
    return ""


def _next(
    client: Client, job_id: str, attempt: str | None, offset: int
) -> tuple[str | None, int, bool]:
    """Return attempt and offset to read on from, and whether nothing will come any more."""
    found = client.get(f"/api/v1/jobs/{job_id}")
    ids = [one["id"] for one in found["attempts"]]
    later = ids[ids.index(attempt) + 1 :] if attempt in ids else ids
    if later:
        return later[0], 0, False
    return attempt, offset, found["state"] in JOB_ENDED
