"""``espalier gc``, ``fsck``, ``backup``, ``restore``: what an administrator does on the machine.

They work on the stack's database and store, not through its web app: the stack may be up or down
(restore: down). Each runs ``python -m scheduler …`` with the settings that `espalier up` would
give its programs.
"""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.cli.common import (
    FAILED,
    JsonFlag,
    plain,
    print_json,
    size_text,
    stderr,
    stdout,
    table,
)
from espalier.cli.up import DataDirFlag
from espalier.errors import EspalierError, InvalidInput
from espalier.settings import Settings, settings

#: Lines that are shown of a program that failed; orphans that are named.
_LINES = 12


def register(app: typer.Typer) -> None:
    for command in (gc, fsck, backup, restore):
        app.command()(command)


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go, and whose it is.")
    ] = False,
    data_dir: DataDirFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Remove from the store what nothing refers to, a week after; the scheduler does so daily."""
    found, code = _scheduler(data_dir, "gc", *(["--dry-run"] if dry_run else []))
    if as_json:
        print_json(found)
        raise typer.Exit(code)
    would = "would go" if dry_run else "are gone"
    if found["held"]:
        stdout().print("A backup is running: blobs are left alone meanwhile.")
    stdout().print(
        f"{found['blobs']} blobs of {size_text(found['bytes'])} {would}; {found['uploads']} uploads"
        f" that were given up, and {found['orphans']} objects that crashes left."
    )
    sizes = sorted(found["projects"].items(), key=lambda item: -item[1])
    if sizes:
        rows = ((name or "(of no version)", size_text(size)) for name, size in sizes)
        table(("of", "bytes"), rows)
    for ref in found["expired"]:
        age = "would be deleted" if dry_run else "is deleted"
        stdout().print(f"{ref} {age}: it is past its project's age limit.", markup=False)
    raise typer.Exit(code)


def fsck(
    deep: Annotated[bool, typer.Option("--deep", help="Read and hash every blob.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what can be without losing anything.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Fill an empty registry from the store alone.")
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="With --rebuild: also versions that no head names.")
    ] = False,
    data_dir: DataDirFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Verify the store against the database; exit code 1 when something is wrong."""
    if rebuild and repair:
        raise InvalidInput("--rebuild fills an empty registry: there is nothing to --repair yet.")
    given = {"--deep": deep, "--repair": repair, "--rebuild": rebuild, "--adopt": adopt}
    found, code = _scheduler(data_dir, "fsck", *(flag for flag, on in given.items() if on))
    if as_json:
        print_json(found)
    elif rebuild:
        _show_rebuilt(found["rebuilt"])
    else:
        _show_report(found)
    raise typer.Exit(code)


def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where backups are kept.")],
    no_blobs: Annotated[
        bool, typer.Option("--no-blobs", help="The database only: the bucket is saved by itself.")
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy blobs also where they could be linked.")
    ] = False,
    data_dir: DataDirFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Save jobs, registry and blobs into DIR, while the stack runs; only what is new is copied."""
    given = {"--no-blobs": no_blobs, "--copy": copy}
    flags = [flag for flag, on in given.items() if on]
    saved, code = _scheduler(data_dir, "backup", str(directory.absolute()), *flags)
    if as_json:
        print_json(saved)
        raise typer.Exit(code)
    rows = sum(file["rows"] for file in saved["tables"].values())
    text = f"{saved['blobs']} blobs of {size_text(saved['bytes'])}"
    if not saved["with_blobs"]:
        text = "no blobs"
    stdout().print(
        f"Saved as [bold]{saved['name']}[/]: {rows} rows and {text};"
        f" {saved['copied']} of them ({size_text(saved['copied_bytes'])}) are new."
    )
    for sha256 in saved["lost"]:
        stderr().print(f"[bold red]lost:[/] blob {sha256} is not in the store: see espalier fsck")
    raise typer.Exit(code)


def restore(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the backup is.")],
    check: Annotated[
        bool, typer.Option("--check", help="Verify the backup, every byte; restore nothing.")
    ] = False,
    snapshot: Annotated[
        str | None, typer.Option(help="Which one, by its name; default: the newest.")
    ] = None,
    data_dir: DataDirFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Fill an empty data directory (or database and bucket) from a backup; then `espalier up`."""
    flags = ["--check"] if check else []
    if snapshot:
        flags += ["--snapshot", snapshot]
    saved, _ = _scheduler(data_dir, "restore", str(directory.absolute()), *flags)
    if as_json:
        print_json(saved)
        return
    did = "is whole" if check else "is restored"
    rows = sum(file["rows"] for file in saved["tables"].values())
    stdout().print(
        f"[bold]{saved['name']}[/] {did}: {rows} rows, {saved['blobs']} blobs of"
        f" {size_text(saved['bytes'])}."
    )
    if not check:
        stdout().print("Start it with `espalier up`; everybody signs in again.", markup=False)


# --- What they print ----------------------------------------------------------------------


def _show_report(found: Mapping[str, Any]) -> None:
    columns = ("what", "name", "problem", "", "advice")
    rows = [
        (f["what"], f["name"], f["problem"], "repaired" if f["repaired"] else "", f["advice"])
        for f in found["findings"]
    ]
    if rows:
        table(columns, rows)
    if found["projects"]:
        sizes = sorted(found["projects"].items(), key=lambda item: -item[1])
        table(("project", "size"), [(name, size_text(size)) for name, size in sizes])
    how = "read and hashed" if found["deep"] else "looked at; --deep reads them"
    console = stdout()
    console.print(
        f"{found['blobs']} blobs of {size_text(found['bytes'])} ({how}), {found['versions']}"
        f" versions, {found['aliases']} aliases, {found['checkpoints']} checkpoints.",
        markup=False,
    )
    if found["orphans"]:
        console.print(
            f"{found['orphans']} objects of {size_text(found['orphan_bytes'])} belong to nothing:"
            " garbage collection takes them after its grace."
        )
        for name in found["orphan_names"][:_LINES]:
            console.print(f"  {plain(name)}", markup=False)
    wrong = sum(not f["repaired"] for f in found["findings"])
    console.print("Nothing is wrong." if not wrong else f"[bold red]{wrong} wrong.[/]")


def _show_rebuilt(made: Mapping[str, Any]) -> None:
    stdout().print(
        f"{made['artifacts']} artifacts, {made['versions']} versions, {made['aliases']} aliases,"
        f" {made['blobs']} blobs of {size_text(made['bytes'])}."
    )
    for line in made["lost"]:
        stderr().print(f"lost: {plain(line)}", markup=False)


# --- Running it ---------------------------------------------------------------------------


def _scheduler(data_dir: Path | None, *arguments: str) -> tuple[dict[str, Any], int]:
    """Run ``python -m scheduler …``; return its JSON and exit code 0 or 1.

    Raises EspalierError with what it said when it printed none.
    """
    config = settings()
    home = (data_dir or config.data_dir).expanduser().resolve()
    command = [sys.executable, "-P", "-m", "scheduler", *arguments]
    last: deque[str] = deque(maxlen=_LINES)
    watched = sys.stderr.isatty()
    with subprocess.Popen(
        command,
        env=_environment(config, home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            last.append(line.rstrip())
            if watched:
                stderr().print(plain(line.rstrip()), style="dim", markup=False)
        told = process.stdout.read()
    if not told.strip():
        raise EspalierError(_said(last) or f"It ended with exit code {process.returncode}.")
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found, FAILED if process.returncode else 0


def _said(lines: deque[str]) -> str:
    """Return the sentence a program ended with; all of its last lines when it broke."""
    if any(line.startswith("Traceback") for line in lines):
        return "\n".join(lines)
    return lines[-1] if lines else ""


def _environment(config: Settings, home: Path) -> dict[str, str]:
    env = {**os.environ, "ESPALIER_DATA_DIR": str(home)}
    # From espalier.toml as well as from the environment.
    for name in ("database_url", "store_url"):
        if value := getattr(config, name):
            env[f"ESPALIER_{name.upper()}"] = value
    if not config.database_url and (home / "postgres").is_dir():
        env["ESPALIER_DATABASE_URL"] = _embedded_postgres(home)
    return env


def _embedded_postgres(home: Path) -> str:
    url = home / "postgres.url"
    if not url.exists():
        raise InvalidInput(
            f"{home} has its own PostgreSQL, which runs only while the stack is up.",
            hint="Start it with `espalier up --postgres`, then run this again.",
        )
    return url.read_text(encoding="utf-8").strip()
