"""``espalier alias …``: names that move over versions, their history, and their gates."""

from typing import Annotated, Any

import typer

from espalier.cli.common import JsonFlag, connect, print_json, stdout, table
from espalier.cli.show import clock
from espalier.errors import InvalidInput
from espalier.refs import ArtifactRef, parse_artifact

PathArgument = Annotated[str, typer.Argument(metavar="ARTIFACT", help="project/name")]
AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS", help="Such as production.")]
ExpectedFlag = Annotated[
    str | None,
    typer.Option(
        metavar="VERSION", help="Move it only if it is at this version or commit now; '' is none."
    ),
]
_DEFAULT_PROJECT = "team"


def register(app: typer.Typer) -> None:
    alias = typer.Typer(
        help="Names that move over versions.", no_args_is_help=True, rich_markup_mode=None
    )
    alias.callback()(_group)
    for name, command in (
        ("set", move),
        ("history", history),
        ("rollback", rollback),
        ("remove", remove),
        ("gate", gate),
        ("gates", gates),
        ("ungate", ungate),
        ("check", check),
    ):
        alias.command(name)(command)
    app.add_typer(alias, name="alias")


def _group() -> None:
    return


def move(
    ref: Annotated[str, typer.Argument(metavar="REF", help="project/name@v3")],
    alias: AliasArgument,
    expected: ExpectedFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Point ALIAS at the version; a gate on it may refuse, and says by how much."""
    wanted = parse_artifact(ref, project=_DEFAULT_PROJECT)
    body = {"version": wanted.selector or "latest", **_expected(expected)}
    with connect() as client:
        found = client.send("PUT", _path(wanted, alias), json=body).json()
    _show(wanted, found, as_json)


def rollback(
    artifact: PathArgument,
    alias: AliasArgument,
    expected: ExpectedFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Point ALIAS at what it pointed at before; again, one further back."""
    wanted = _artifact(artifact)
    with connect() as client:
        found = client.post(f"{_path(wanted, alias)}/rollback", _expected(expected))
    _show(wanted, found, as_json)


def remove(artifact: PathArgument, alias: AliasArgument, expected: ExpectedFlag = None) -> None:
    """Take ALIAS away; the version it pointed at stays."""
    wanted = _artifact(artifact)
    with connect() as client:
        client.send("DELETE", _path(wanted, alias), params=_expected(expected))
    stdout().print(f"{wanted}@{alias} is gone.", markup=False)


def history(artifact: PathArgument, alias: AliasArgument, as_json: JsonFlag = False) -> None:
    """Show where a name has been, who moved it, and what a gate measured; newest first."""
    with connect() as client:
        found = client.get(f"{_path(_artifact(artifact), alias)}/history")
    if as_json:
        print_json(found)
        return
    rows = (
        (clock(m["time"]), m["actor"], m["why"], _number(m["from"]), _number(m["to"]), m["detail"])
        for m in found["moves"]
    )
    table(("when", "who", "why", "from", "to", ""), rows)


def gate(
    artifact: PathArgument,
    alias: AliasArgument,
    data: Annotated[str, typer.Option(help="The data set that evals measure on: project/name@v2.")],
    metric: Annotated[str, typer.Option(help="test_loss, perplexity, exact_match or accuracy.")] = (
        "test_loss"
    ),
    by: Annotated[
        float, typer.Option(min=0.0, help="How much better than the incumbent's it must be.")
    ] = 0.0,
    proofs: Annotated[
        bool, typer.Option("--proofs/--no-proofs", help="No proof may have failed.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Let ALIAS move only to versions whose eval is good enough; for owners and admins."""
    body = {"data": data, "metric": metric, "min_delta": by, "proofs": proofs}
    wanted = _artifact(artifact)
    with connect() as client:
        found = client.send("PUT", f"{_path(wanted, alias)}/gate", json=body).json()
    if as_json:
        print_json(found)
    else:
        stdout().print(f"{wanted}@{alias}: {found['text']}", markup=False)


def gates(artifact: PathArgument, as_json: JsonFlag = False) -> None:
    """List what the artifact's aliases ask of a version."""
    with connect() as client:
        found = client.get(f"/api/v1/artifacts/{_artifact(artifact).path}/gates")
    if as_json:
        print_json(found)
    else:
        table(("alias", "asks"), ((one["alias"], one["text"]) for one in found["gates"]))


def ungate(artifact: PathArgument, alias: AliasArgument) -> None:
    """Let ALIAS move to any version again; for owners and admins."""
    wanted = _artifact(artifact)
    with connect() as client:
        client.delete(f"{_path(wanted, alias)}/gate")
    stdout().print(f"{wanted}@{alias} asks nothing any more.", markup=False)


def check(
    ref: Annotated[str, typer.Argument(metavar="REF", help="project/name@v3")],
    alias: AliasArgument,
    as_json: JsonFlag = False,
) -> None:
    """Say whether ALIAS may move to the version; exit code 1 when its gate would refuse."""
    wanted = parse_artifact(ref, project=_DEFAULT_PROJECT)
    params = {"version": wanted.selector or "latest"}
    with connect() as client:
        found = client.get(f"{_path(wanted, alias)}/verdict", params)
    if as_json:
        print_json(found)
    else:
        stdout().print(found["text"] or f"{alias} has no gate.", markup=False)
    raise typer.Exit(0 if found["passed"] else 1)


def _artifact(text: str) -> ArtifactRef:
    ref = parse_artifact(text, project=_DEFAULT_PROJECT)
    if ref.selector:
        raise InvalidInput(f"{text} names a version; an alias belongs to all of {ref.path}.")
    return ref


def _path(ref: ArtifactRef, alias: str) -> str:
    if "/" in alias or not alias:
        raise InvalidInput(f"{alias!r} is no alias.")
    return f"/api/v1/artifacts/{ref.path}/aliases/{alias}"


def _expected(expected: str | None) -> dict[str, str]:
    return {} if expected is None else {"expected": expected}


def _number(ref: str | None) -> str:
    return ref.rsplit("@", 1)[-1] if ref else "–"


def _show(ref: ArtifactRef, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        stdout().print(f"{ref.path}@{found['alias']} is [bold]{found['ref']}[/].")
