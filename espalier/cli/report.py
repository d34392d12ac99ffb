"""``espalier report``: what a job, or its pipeline, did and found."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from espalier.cli.common import JsonFlag, connect, print_json, stdout


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A file instead of standard output.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a job's report, or its whole pipeline's, as Markdown: losses, tables, proofs, specs."""
    with connect() as client:
        found = client.get(f"/api/v1/jobs/{job_id}/report")
    if as_json:
        print_json(found)
    elif out is None:
        sys.stdout.write(found["markdown"])
    else:
        out.write_text(found["markdown"], encoding="utf-8")
        stdout().print(f"Wrote {out}.")
