"""``espalier webhook …``: addresses that are told what happens in a project's store."""

from typing import Annotated

import typer

from espalier.cli.common import JsonFlag, connect, print_json, stdout, table
from espalier.cli.show import clock
from espalier.errors import InvalidInput

ProjectArgument = Annotated[str, typer.Argument(help="The project.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `webhook list` tells it.")]


def register(app: typer.Typer) -> None:
    webhook = typer.Typer(
        help="Who is told what happens.", no_args_is_help=True, rich_markup_mode=None
    )
    webhook.callback()(_group)
    for name, command in (
        ("add", add),
        ("list", webhooks),
        ("remove", remove),
        ("enable", enable),
        ("ping", ping),
        ("deliveries", deliveries),
        ("redeliver", redeliver),
    ):
        webhook.command(name)(command)
    app.add_typer(webhook, name="webhook")


def _group() -> None:
    return


def add(
    project: ProjectArgument,
    url: Annotated[str, typer.Argument(metavar="URL", help="http:// or https://")],
    event: Annotated[
        list[str] | None, typer.Option(help="Of what to tell; several.", show_default="all")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell URL what happens in the project, signed; the secret is shown this one time."""
    with connect() as client:
        made = client.post(_path(project), {"url": url, "events": event or []})
    if as_json:
        print_json(made)
        return
    stdout().print(f"[bold]{made['id']}[/]  {' '.join(made['events'])}")
    stdout().print(f"secret: {made['secret']}  (shown once)", markup=False)


def webhooks(project: ProjectArgument, as_json: JsonFlag = False) -> None:
    """List the project's webhooks."""
    with connect() as client:
        found = client.get(_path(project))
    if as_json:
        print_json(found)
        return
    rows = (
        (one["id"], one["url"], " ".join(one["events"]), "disabled" if one["disabled_at"] else "")
        for one in found["webhooks"]
    )
    table(("id", "url", "events", ""), rows)


def remove(project: ProjectArgument, webhook: IdArgument) -> None:
    """Take a webhook away, with what it was still to be sent."""
    with connect() as client:
        client.delete(_path(project, webhook))
    stdout().print(f"Webhook {webhook} is gone.", markup=False)


def enable(project: ProjectArgument, webhook: IdArgument) -> None:
    """Send again to a webhook that was disabled after too many failures."""
    with connect() as client:
        found = client.post(f"{_path(project, webhook)}/enable", {})
    stdout().print(f"{found['url']} is told again.", markup=False)


def ping(project: ProjectArgument, webhook: IdArgument, as_json: JsonFlag = False) -> None:
    """Send a ping; `webhook deliveries` tells whether it was taken."""
    with connect() as client:
        found = client.post(f"{_path(project, webhook)}/ping", {})
    if as_json:
        print_json(found)
    else:
        stdout().print(f"Delivery {found['id']} is on its way.", markup=False)


def deliveries(
    project: ProjectArgument,
    webhook: IdArgument,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List what was sent and is to be, newest first."""
    with connect() as client:
        found = client.get(f"{_path(project, webhook)}/deliveries", {"limit": limit})
    if as_json:
        print_json(found)
        return
    rows = (
        (
            one["id"],
            one["event"],
            one["state"],
            one["tries"],
            one["status"],
            clock(one["sent_at"] or one["due_at"]),
            one["error"],
        )
        for one in found["deliveries"]
    )
    table(("id", "event", "state", "tries", "status", "sent or due", ""), rows)


def redeliver(
    project: ProjectArgument,
    webhook: IdArgument,
    delivery: Annotated[int, typer.Argument(metavar="DELIVERY", min=1)],
) -> None:
    """Send a delivery once more."""
    with connect() as client:
        client.post(f"{_path(project, webhook)}/deliveries/{delivery}/redeliver", {})
    stdout().print(f"Delivery {delivery} is on its way again.", markup=False)


def _path(project: str, webhook: str = "") -> str:
    for word in (project, webhook):
        if "/" in word:
            raise InvalidInput(f"{word!r} is no name.")
    path = f"/api/v1/projects/{project}/webhooks"
    return f"{path}/{webhook}" if webhook else path
