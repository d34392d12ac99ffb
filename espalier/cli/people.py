"""``espalier user add`` and ``espalier login-link``: who may use the stack, and how they get in."""

from typing import Annotated, Any

import typer

from espalier.cli.common import JsonFlag, connect, print_json, stdout


def register(app: typer.Typer) -> None:
    user = typer.Typer(help="People.", no_args_is_help=True, rich_markup_mode=None)
    user.callback()(_group)
    user.command("add")(add)
    app.add_typer(user, name="user")
    app.command("login-link")(login_link)


def _group() -> None:
    return


def add(
    name: Annotated[str, typer.Argument(help="How they are called.")],
    project: Annotated[
        list[str] | None, typer.Option(help="To be a member of.", show_default="team")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May manage people and workers.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Add a person and print the link that signs them in, once."""
    body = {"name": name, "projects": project or ["team"], "is_admin": admin}
    with connect() as client:
        _show(client.post("/api/v1/users", body), as_json)


def login_link(
    user: Annotated[str | None, typer.Argument(help="Default: yourself.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a link that signs one browser in, once."""
    with connect() as client:
        _show(client.post("/api/v1/login-links", {"user": user}), as_json)


def _show(link: Any, as_json: bool) -> None:
    if as_json:
        print_json(link)
    else:
        stdout().print(link["url"], markup=False)
