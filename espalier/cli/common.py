"""What every command shares: how it fails, what it prints, whom it talks to."""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from espalier.client import Client
from espalier.errors import EspalierError, InvalidInput, Unauthorized, Unavailable
from espalier.settings import settings

#: Exit codes beside 0: a job failed or the command did; the request was refused; a job was
#: cancelled; the control plane is away, so nothing is known.
FAILED, REFUSED, CANCELLED, AWAY, INTERRUPTED = 1, 2, 3, 4, 130

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

#: Bytes that move a terminal's cursor or worse; logs come from other machines.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")


class Commands(TyperGroup):
    """Turns what the project raises into one sentence, a hint, and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EspalierError as error:
            complain(error)
            raise typer.Exit(exit_code(error)) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error


def exit_code(error: EspalierError) -> int:
    if isinstance(error, Unavailable):
        return AWAY
    return REFUSED if 400 <= error.status < 500 else FAILED


def complain(error: EspalierError) -> None:
    """Print the sentence, each further fault, and the next step, on standard error."""
    console = stderr()
    console.print(f"[bold red]error:[/] {escape(plain(error.detail))}")
    for fault in error.errors[1:]:
        loc = fault.get("loc", ())
        in_file = len(loc) == 3 and isinstance(loc[1], int)  # file, line, column
        where = (":" if in_file else ".").join(str(part) for part in loc)
        message = fault.get("msg", "")
        console.print(f"       {escape(plain(f'{where}: {message}'))}")
    if error.hint:
        console.print(f"[bold]hint:[/]  {escape(plain(error.hint))}")


def stdout() -> Console:
    return Console(soft_wrap=True, highlight=False)


def stderr() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def plain(text: str) -> str:
    """Return the text without control characters: only line breaks and tabs stay."""
    return _CONTROL.sub("", text)


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table for people; numbers to the right."""
    cells = [list(row) for row in rows]
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        numbers = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
        shown.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        shown.add_row(*(escape(plain("" if cell is None else str(cell))) for cell in row))
    # Through a pipe nobody's terminal limits the width.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
    console.print(shown)


def size_text(size: float | None) -> str:
    """Return bytes as people write them: ``3.2 MB``, in powers of ten."""
    if size is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# --- Whom it talks to ---------------------------------------------------------------------


def config_dir() -> Path:
    return platformdirs.user_config_path("espalier")


def save_secret(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON that only this user can read, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(document, file)
    fresh.replace(path)


def read_secret(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}.", hint="Remove it.") from error
    return found if isinstance(found, dict) else {}


def credentials_file() -> Path:
    return config_dir() / "credentials.json"


def remember_login(url: str, token: str) -> None:
    """Keep the token for ``url``, which becomes the one that commands talk to."""
    known = read_secret(credentials_file()).get("tokens", {})
    save_secret(credentials_file(), {"url": url, "tokens": {**known, url: token}})


def target() -> tuple[str, str | None]:
    """Return URL and token: from the environment, else from `espalier login`."""
    config, saved = settings(), read_secret(credentials_file())
    url = config.url if "url" in config.model_fields_set else str(saved.get("url", config.url))
    url = url.rstrip("/")
    if config.token:
        return url, config.token.get_secret_value()
    return url, saved.get("tokens", {}).get(url)


def connect() -> Client:
    """Return the client of the control plane this user talks to. Raises Unauthorized."""
    url, token = target()
    if not token:
        raise Unauthorized(
            f"There is no token for {url}.",
            hint=f"Run `espalier login {url}`, or set ESPALIER_URL and ESPALIER_TOKEN.",
        )
    return Client(url, token)
