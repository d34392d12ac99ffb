"""The commands, put together."""

import sys
from typing import Annotated

import typer

import espalier
from espalier.cli import (
    aliases,
    artifacts,
    compare,
    demo,
    doctor,
    jobs,
    people,
    projects,
    report,
    retiring,
    samples,
    submit,
    up,
    upkeep,
    webhooks,
    workers,
)
from espalier.cli.common import Commands, JsonFlag, print_json, remember_login, stdout
from espalier.client import Client
from espalier.errors import InvalidInput

app = typer.Typer(
    cls=Commands,
    help="A team's own fine-tuning service and model hub, served by the Macs under its desks.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    return


def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the control plane is.")],
    as_json: JsonFlag = False,
) -> None:
    """Keep a personal token for the control plane at URL, asked for or read from stdin."""
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(f"{url!r} is no URL: it begins with http:// or https://.")
    url = url.rstrip("/")
    if sys.stdin.isatty():
        token = typer.prompt("Personal token", hide_input=True)
    else:
        token = sys.stdin.readline()
    token = token.strip()
    if not token:
        raise InvalidInput("No token came on standard input.", hint="The web page makes one.")
    with Client(url, token) as client:
        who = client.get("/api/v1/whoami")
    remember_login(url, token)
    if as_json:
        print_json({"url": url, **who})
    else:
        stdout().print(f"Signed in at {url} as [bold]{who['user']}[/].")


def version(as_json: JsonFlag = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": espalier.__version__})
    else:
        stdout().print(f"espalier {espalier.__version__}")


for module in (up, demo):
    module.register(app)
app.command()(login)
for further in (
    submit, jobs, report, samples, artifacts, aliases, retiring, compare, workers, people, projects,
    webhooks, doctor, upkeep,
):  # fmt: skip
    further.register(app)
app.command()(version)
