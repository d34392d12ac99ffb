"""``espalier projects`` and ``espalier project set``."""

from typing import Annotated

import typer

from espalier.cli.common import JsonFlag, connect, print_json, stdout, table
from espalier.cli.show import clock
from espalier.errors import InvalidInput


def register(app: typer.Typer) -> None:
    project = typer.Typer(help="Projects.", no_args_is_help=True, rich_markup_mode=None)
    project.callback()(_group)
    project.command("set")(change)
    app.add_typer(project, name="project")
    app.command("projects")(projects)


def _group() -> None:
    return


def projects(as_json: JsonFlag = False) -> None:
    """List your projects: your role, and whether their jobs may be paused for urgent ones."""
    with connect() as client:
        found = client.get("/api/v1/projects")
    if as_json:
        print_json(found)
        return
    rows = (
        (p["name"], p["role"], "yes" if p["preemptible"] else "no", clock(p["created_at"]))
        for p in found["projects"]
    )
    table(("name", "you are", "preemptible", "created"), rows)


def change(
    name: Annotated[str, typer.Argument(help="The project.")],
    preemptible: Annotated[
        bool | None,
        typer.Option(
            "--preemptible/--no-preemptible",
            help="May its running jobs be paused for more urgent ones?",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change a project; for its owners and admins."""
    if preemptible is None:
        raise InvalidInput(
            "Nothing to change was named.", hint="Give --preemptible or --no-preemptible."
        )
    if "/" in name:
        raise InvalidInput(f"{name!r} is no project's name.")
    with connect() as client:
        found = client.patch(f"/api/v1/projects/{name}", {"preemptible": preemptible})
    if as_json:
        print_json(found)
    else:
        says = "may be paused for more urgent ones" if found["preemptible"] else "run on"
        stdout().print(f"{found['name']}: its jobs {says}")
