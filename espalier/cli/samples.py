"""``espalier samples``: what an evaluation's models answered."""

from typing import Annotated, Any

import typer
from rich.markup import escape

from espalier.cli.common import JsonFlag, connect, plain, print_json, stdout
from espalier.errors import InvalidInput


def register(app: typer.Typer) -> None:
    app.command("samples")(samples)


def samples(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="An eval's id.")],
    wrong: Annotated[bool, typer.Option("--wrong", help="Those that are not right.")] = False,
    lost: Annotated[
        bool, typer.Option("--lost", help="Those that the base had right, and the adapter wrong.")
    ] = False,
    gained: Annotated[
        bool, typer.Option("--gained", help="Those that the adapter has right, and the base wrong.")
    ] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Those that the adapter answers otherwise.")
    ] = False,
    metric: Annotated[str | None, typer.Option(help="Right and wrong go by it.")] = None,
    search: Annotated[
        str, typer.Option("-q", "--search", help="In prompts, references and answers.")
    ] = "",
    offset: Annotated[int, typer.Option(min=0)] = 0,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 25,
    as_json: JsonFlag = False,
) -> None:
    """Show an evaluation's samples: prompt, reference, and what base and adapter answered."""
    shows = {"wrong": wrong, "lost": lost, "gained": gained, "changed": changed}
    chosen = [name for name, is_wanted in shows.items() if is_wanted]
    if len(chosen) > 1:
        raise InvalidInput(f"--{' and --'.join(chosen)}: choose one of them.")
    params = {
        "show": chosen[0] if chosen else "all",
        "metric": metric,
        "q": search,
        "offset": offset,
        "limit": limit,
    }
    with connect() as client:
        found = client.get(f"/api/v1/jobs/{job_id}/samples", params)
    print_json(found) if as_json else _show(found)


def _show(found: dict[str, Any]) -> None:
    for sample in found["samples"]:
        stdout().print(f"[bold]line {sample['line']}[/]  {_one_line(sample['prompt'])}")
        stdout().print(f"  reference  {_one_line(sample['reference'])}")
        for name in ("base", "tuned"):
            if answer := sample["answers"].get(name):
                stdout().print(f"  {name:<9}  {_one_line(answer['text'])}  {_scores(answer)}")
    last = found["offset"] + len(found["samples"])
    kinds = ", ".join(f"{n} {kind}" for kind, n in found["counts"].items() if n and kind != "all")
    stdout().print(
        f"{last} of {found['total']} shown; of {found['counts']['all']} samples: {kinds or 'none'}"
        + (f" (by {found['metric']})" if found["metric"] else "")
    )


def _scores(answer: dict[str, Any]) -> str:
    words = []
    for metric, score in answer["scores"].items():
        if score is None:
            words.append(f"{metric} –")
        else:
            colour = "green" if score >= 1 else "red"
            words.append(f"[{colour}]{metric} {score:.3g}[/]")
    return "  ".join(words)


def _one_line(text: str) -> str:
    return escape(plain(" ".join(text.split())))
