"""``espalier train|eval|… --explain``: what a job would need, and where it fits."""

from typing import Annotated, Any

import typer
from rich.markup import escape

from espalier.cli.common import plain, print_json, stdout, table
from espalier.client import Client

ExplainFlag = Annotated[
    bool,
    typer.Option("--explain", help="Tell the memory it needs and where it fits; submit nothing."),
]


def explain(client: Client, request: Any, *, as_json: bool = False) -> None:
    """Ask for an estimate and print it: parts, workers, and the change that makes it fit."""
    found = client.post("/api/v1/estimate", request)
    if as_json:
        print_json(found)
        return
    if found["known"]:
        rows = [(part["name"], gib(part["bytes"])) for part in found["parts"]]
        table(("memory", "needs"), [*rows, *_correction(found), ("in all", gib(found["needs"]))])
    if found["workers"]:
        table(
            ("worker", "chip", "gives", "needs", "fits"),
            [
                (w["name"], w["chip"], gib(w["gives"]), gib(w["needs"]), _answer(w["fits"]))
                for w in found["workers"]
            ],
        )
    stdout().print(escape(plain(found["summary"])))


def _correction(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Name what measured jobs have taught, as a row of its own."""
    learnt = found["correction"]
    if learnt is None:
        return []
    total = sum(part["bytes"] for part in found["parts"])
    jobs = "job" if learnt["attempts"] == 1 else "jobs"
    name = f"measured on {learnt['attempts']} {jobs} (× {learnt['ratio']:.2f})"
    return [(name, gib(found["needs"] - total, sign="+"))]


def gib(size: int | None, sign: str = "") -> str:
    """Return bytes as memory is told, in GiB or MiB; nothing for None."""
    if size is None:
        return ""
    if abs(size) >= 1 << 30:
        return f"{size / (1 << 30):{sign}.2f} GiB"
    return f"{size / (1 << 20):{sign}.1f} MiB"


def _answer(fits: bool | None) -> str:
    return "" if fits is None else "yes" if fits else "no"
