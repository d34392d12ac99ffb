"""``espalier up``: the whole of it on this machine."""

import json
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from espalier.cli.common import stderr, stdout
from espalier.cli.stack import Options, Stack, Stopped, running
from espalier.settings import settings

DataDirFlag = Annotated[
    Path | None, typer.Option(help="Where everything lives; default ~/.espalier.")
]
PortFlag = Annotated[
    int | None, typer.Option(help="Port of the web app; default: the first free one from 8000.")
]
HostFlag = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other Macs join.")]


def register(app: typer.Typer) -> None:
    app.command()(up)


def up(
    data_dir: DataDirFlag = None,
    port: PortFlag = None,
    workers: Annotated[int, typer.Option(help="Workers on this machine.")] = 1,
    host: HostFlag = "127.0.0.1",
    postgres: Annotated[
        bool, typer.Option("--postgres", help="PostgreSQL from a wheel instead of SQLite.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="First line, once ready: url, token, data_dir, pids.")
    ] = False,
) -> None:
    """Start web app, scheduler, broker and workers here; Ctrl-C stops them all."""
    home = (data_dir or settings().data_dir).expanduser().resolve()
    options = Options(home, host, port, workers, postgres)
    with stop_signals() as stopping:
        try:
            with running(options, stopping, notify) as stack:
                _greet(stack, as_json)
                stopping.wait()
                if not as_json:
                    notify("stopping")
        except Stopped:
            return


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT, SIGTERM and SIGHUP set, so that stopping is never cut short."""
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def notify(line: str) -> None:
    """Say it on standard error, if that still exists: a closed terminal stops no stack."""
    with suppress(OSError):
        stderr().print(line, style="dim", markup=False)


def _greet(stack: Stack, as_json: bool) -> None:
    if as_json:
        document = {
            "url": stack.url,
            "token": stack.token,
            "data_dir": str(stack.data_dir),
            "pids": stack.pids(),
            "limits": list(stack.limits),
        }
        print(json.dumps(document), flush=True)
        return
    console = stdout()
    console.print(f"[bold green]Espalier is up:[/] [bold]{stack.url}[/]")
    console.print(f"  sign in once   {stack.login}")
    token = shlex.quote(str(stack.data_dir / "token"))
    console.print(f"  command line   espalier login {stack.url} < {token}", markup=False)
    console.print(f"  data and logs  {stack.data_dir}", markup=False)
    for limit in stack.limits:
        console.print(f"  the store      {limit}", markup=False)
    console.print("  stop           Ctrl-C")
