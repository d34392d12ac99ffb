"""``espalier projects`` and ``espalier project set``."""

import re
from typing import Annotated, Any

import typer

from espalier.cli.common import JsonFlag, connect, print_json, size_text, stdout, table
from espalier.cli.show import clock
from espalier.errors import InvalidInput

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([kmgtp]?)(i?)b?", re.IGNORECASE)


def register(app: typer.Typer) -> None:
    project = typer.Typer(help="Projects.", no_args_is_help=True, rich_markup_mode=None)
    project.callback()(_group)
    project.command("set")(change)
    app.add_typer(project, name="project")
    app.command("projects")(projects)


def _group() -> None:
    return


def projects(as_json: JsonFlag = False) -> None:
    """List your projects: your role, what they use of the store, and their rules."""
    with connect() as client:
        found = client.get("/api/v1/projects")
    if as_json:
        print_json(found)
        return
    rows = (
        (
            p["name"],
            p["role"],
            "yes" if p["preemptible"] else "no",
            size_text(p["used_bytes"]),
            size_text(p["quota_bytes"]) or "none",
            f"{p['ttl_days']} days" if p["ttl_days"] else "none",
            clock(p["created_at"]),
        )
        for p in found["projects"]
    )
    table(("name", "you are", "preemptible", "uses", "quota", "age limit", "created"), rows)


def change(
    name: Annotated[str, typer.Argument(help="The project.")],
    preemptible: Annotated[
        bool | None,
        typer.Option(
            "--preemptible/--no-preemptible",
            help="May its running jobs be paused for more urgent ones?",
        ),
    ] = None,
    quota: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What its versions may take: 200GB, or none. Admins."),
    ] = None,
    ttl: Annotated[
        str | None,
        typer.Option(metavar="DAYS", help="Versions that nothing names go after this; or none."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change a project; for its owners and admins."""
    body: dict[str, Any] = {}
    if preemptible is not None:
        body["preemptible"] = preemptible
    if quota is not None:
        body["quota_bytes"] = None if quota == "none" else _bytes(quota)
    if ttl is not None:
        body["ttl_days"] = None if ttl == "none" else _days(ttl)
    if not body:
        raise InvalidInput(
            "Nothing to change was named.", hint="Give --preemptible, --quota or --ttl."
        )
    if "/" in name:
        raise InvalidInput(f"{name!r} is no project's name.")
    with connect() as client:
        found = client.patch(f"/api/v1/projects/{name}", body)
    if as_json:
        print_json(found)
    else:
        stdout().print(_told(found), markup=False)


def _told(project: dict[str, Any]) -> str:
    says = "may be paused for more urgent ones" if project["preemptible"] else "run on"
    quota, ttl = project["quota_bytes"], project["ttl_days"]
    room = f"of {size_text(quota)}" if quota is not None else "without a limit"
    age = f"go after {ttl} days" if ttl is not None else "stay"
    return (
        f"{project['name']}: its jobs {says}; it uses {size_text(project['used_bytes'])} {room};"
        f" versions that nothing names {age}."
    )


def _bytes(text: str) -> int:
    """Return bytes from ``200GB``, ``1.5 TiB`` or ``800``."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise InvalidInput(f"{text!r} is no size: write it as 200GB, 1.5TiB or none.")
    power = " kmgtp".index(found[2].lower() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def _days(text: str) -> int:
    number = text.strip().removesuffix("d")
    if not number.isdecimal():
        raise InvalidInput(f"{text!r} is no number of days: write it as 30, or none.")
    return int(number)
