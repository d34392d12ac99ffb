"""``espalier artifact delete|restore|deleted``: what is thrown away, and brought back."""

from typing import Annotated

import typer

from espalier.cli.common import JsonFlag, connect, print_json, stdout, table
from espalier.cli.show import clock
from espalier.errors import InvalidInput
from espalier.refs import ArtifactRef, parse_artifact

RefArgument = Annotated[
    str, typer.Argument(metavar="REF", help="project/name@v3, or project/name for all of it.")
]
_DEFAULT_PROJECT = "team"


def register(app: typer.Typer) -> None:
    artifact = typer.Typer(help="Delete and restore.", no_args_is_help=True, rich_markup_mode=None)
    artifact.callback()(_group)
    artifact.command("delete")(remove)
    artifact.command("restore")(restore)
    artifact.command("deleted")(deleted)
    app.add_typer(artifact, name="artifact")


def _group() -> None:
    return


def remove(
    ref: RefArgument,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before all of it is deleted.")
    ] = False,
) -> None:
    """Delete a version, or an artifact with everything in it; for a week it can be restored."""
    wanted = parse_artifact(ref, project=_DEFAULT_PROJECT)
    if not wanted.selector and not yes:
        typer.confirm(f"Delete all versions, aliases and branches of {wanted}?", abort=True)
    with connect() as client:
        client.delete(_path(wanted))
    stdout().print(
        f"{wanted} is deleted. `espalier artifact restore {wanted}` brings it back for a week.",
        markup=False,
    )


def restore(ref: RefArgument) -> None:
    """Bring back a deleted version, or an artifact with everything that was in it."""
    wanted = parse_artifact(ref, project=_DEFAULT_PROJECT)
    if wanted.selector and wanted.version is None:
        raise InvalidInput(f"{ref}: name the version by its number.")
    with connect() as client:
        client.post(f"{_path(wanted)}/restore", {})
    stdout().print(f"{wanted} is back.", markup=False)


def deleted(
    project: Annotated[str, typer.Argument(help="Whose.")] = _DEFAULT_PROJECT,
    as_json: JsonFlag = False,
) -> None:
    """List what can be restored, and until when."""
    if "/" in project:
        raise InvalidInput(f"{project!r} is no project's name.")
    with connect() as client:
        found = client.get(f"/api/v1/projects/{project}/deleted")
    if as_json:
        print_json(found)
        return
    rows = (
        (one["ref"], clock(one["deleted_at"]), clock(one["until"]))
        for one in (*found["artifacts"], *found["versions"])
    )
    table(("deleted", "when", "until"), rows)


def _path(ref: ArtifactRef) -> str:
    version = f"/versions/{ref.selector}" if ref.selector else ""
    return f"/api/v1/artifacts/{ref.path}{version}"
