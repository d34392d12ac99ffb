"""``espalier workers`` and ``espalier worker run|join|drain``."""

import os
import platform
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from espalier.cli.common import (
    JsonFlag,
    config_dir,
    connect,
    print_json,
    read_secret,
    save_secret,
    size_text,
    stdout,
    table,
)
from espalier.cli.show import clock
from espalier.client import Client
from espalier.errors import InvalidInput, Unauthorized
from espalier.refs import check_name
from espalier.settings import settings

_worker = typer.Typer(help="This machine as a worker.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.command("workers")(workers)
    app.add_typer(_worker, name="worker")


def identity_file() -> Path:
    """Where `join` keeps this machine's URL and worker token."""
    return config_dir() / "worker.json"


def workers(as_json: JsonFlag = False) -> None:
    """List the workers: what each is and does."""
    with connect() as client:
        found = client.get("/api/v1/workers")
    if as_json:
        print_json(found)
        return
    rows = []
    for worker in found["workers"]:
        machine = worker["machine"] or {}
        rows.append(
            (
                worker["name"],
                worker["state"],
                machine.get("chip"),
                size_text(machine.get("memory_total")),
                size_text(machine.get("memory_limit")),
                machine.get("platform"),
                " ".join(worker["running"]),
                clock(worker["seen_at"]),
            )
        )
    table(("name", "state", "chip", "memory", "to give", "system", "running", "seen"), rows)


@_worker.command()
def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the control plane is.")],
    token: Annotated[
        str | None,
        typer.Option(help="The one-use join token from the workers page; asked for if absent."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Default: this machine's name.")] = None,
    start: Annotated[bool, typer.Option("--run", help="Begin to work at once.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make this machine a worker of the control plane at URL."""
    secret = token or typer.prompt("Join token", hide_input=True)
    chosen = check_name(name, "worker") if name else _machine_name()
    url = url.rstrip("/")
    with Client(url, secret.strip()) as client:
        answer = client.post("/agent/v1/join", {"name": chosen})
    save_secret(identity_file(), {"url": url, "token": answer["token"], "name": answer["name"]})
    if start:
        run()
    if as_json:
        print_json({"worker_id": answer["worker_id"], "name": answer["name"], "url": url})
    else:
        stdout().print(f"{answer['name']} has joined {url}. Next: [bold]espalier worker run[/]")


def _machine_name() -> str:
    host = platform.node().partition(".")[0]
    return check_name(re.sub(r"[^A-Za-z0-9-]+", "-", host).strip("-") or "worker", "worker")


@_worker.command()
def run(
    state_dir: Annotated[
        Path | None, typer.Option(help="Blob cache and unsent reports; default: ~/.espalier/worker")
    ] = None,
) -> None:
    """Take jobs until stopped. Needs `espalier worker join`, or ESPALIER_URL and ESPALIER_TOKEN."""
    config, saved = settings(), read_secret(identity_file())
    token = config.token.get_secret_value() if config.token else saved.get("token")
    url = config.url if "url" in config.model_fields_set else saved.get("url", config.url)
    if not token:
        raise Unauthorized(
            "This machine is no worker yet.",
            hint="Run `espalier worker join URL --token …`; the workers page makes the token.",
        )
    directory = (state_dir or config.home / "worker").expanduser().absolute()
    os.environ.update(ESPALIER_URL=url, ESPALIER_TOKEN=token)
    argv = [sys.executable, "-P", "-m", "worker", "--state-dir", str(directory)]
    sys.stdout.flush()
    os.execv(argv[0], argv)  # noqa: S606  the same process, so signals need no relay


@_worker.command()
def drain(
    worker: Annotated[str, typer.Argument(help="Its name or id.")],
    undo: Annotated[bool, typer.Option("--undo", help="Give it jobs again.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Let a worker finish what it holds and give it nothing more."""
    if "/" in worker:
        raise InvalidInput(f"{worker!r} is no worker's name.")
    with connect() as client:
        answer = client.post(f"/api/v1/workers/{worker}/drain", {"draining": not undo})
    if as_json:
        print_json(answer if answer is not None else {"worker": worker, "draining": not undo})
    else:
        stdout().print(f"{worker} {'takes jobs again' if undo else 'drains'}")
