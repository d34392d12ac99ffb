"""What keeps a stack's store and database sound, as ``python -m scheduler …`` runs it.

The S3 driver and what belongs to it are heavy, and the loop does not need them: they are imported
by what uses them.
"""

import sys
from argparse import Namespace, _SubParsersAction
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from espalier.settings import Settings
from scheduler.db import Database, migrate

#: The commands of this module.
COMMANDS = ("gc", "fsck", "backup", "restore")


def add_commands(commands: "_SubParsersAction[Any]") -> None:
    """Add the commands' parsers."""
    sweep = commands.add_parser("gc", help="remove from the store what nothing refers to")
    sweep.add_argument("--dry-run", action="store_true", help="only say what it would be")
    check = commands.add_parser("fsck", help="hold the store against the database")
    check.add_argument("--deep", action="store_true", help="read and hash every blob")
    check.add_argument("--repair", action="store_true", help="put right what loses nothing")
    check.add_argument("--rebuild", action="store_true", help="fill an empty registry")
    check.add_argument("--adopt", action="store_true", help="also of manifests without a head")
    save = commands.add_parser("backup", help="a snapshot of SQL and of the blobs it names")
    save.add_argument("directory", type=Path)
    save.add_argument("--no-blobs", action="store_true", help="the bucket is saved by itself")
    save.add_argument("--copy", action="store_true", help="never link blobs, also on one disk")
    load = commands.add_parser("restore", help="fill an empty stack from a backup")
    load.add_argument("directory", type=Path)
    load.add_argument("--snapshot", help="by its name; default: the newest")
    load.add_argument("--check", action="store_true", help="only verify the backup")


def run(arguments: Namespace, config: Settings) -> tuple[dict[str, Any], bool]:
    """Do what was asked for; return what there is to tell, and whether all is well."""
    match arguments.command:
        case "gc":
            return collect_garbage(config, arguments.dry_run), True
        case "fsck":
            return fsck(config, arguments)
        case "backup":
            return backup(config, arguments)
        case _:
            return restore(config, arguments), True


def collect_garbage(config: Settings, dry_run: bool) -> dict[str, Any]:
    """Sweep the store; return what was removed, or would be.

    ``expired`` are the versions that their project's age limit takes: deleted now, collected after
    the grace.
    """
    from scheduler.bytes import gc
    from scheduler.bytes.blobs import Blobs
    from scheduler.catalog import ttl, webhooks
    from scheduler.store import open_driver

    with _opened(config) as database:
        expired = ttl.expire(database, dry_run)
        if not dry_run:
            with database.transaction() as session:
                webhooks.forget_old(session)
        found = gc.collect(database, Blobs(open_driver(config), config), dry_run=dry_run)
        return {**asdict(found), "expired": expired}


def fsck(config: Settings, arguments: Namespace) -> tuple[dict[str, Any], bool]:
    """Check the store, or make the registry anew of it."""
    from scheduler.store import open_driver
    from scheduler.upkeep import fsck, rebuild

    driver = open_driver(config)
    migrate(config.sql_url)
    with _opened(config) as database:
        if arguments.rebuild:
            made = rebuild.rebuild(database, driver, adopt=arguments.adopt, tell=tell)
            return {"rebuilt": asdict(made), "store": driver.place}, not made.lost
        report = fsck.check(
            database, driver, deep=arguments.deep, repair=arguments.repair, tell=tell
        )
        return {**report.document(), "store": driver.place}, report.clean


def backup(config: Settings, arguments: Namespace) -> tuple[dict[str, Any], bool]:
    """Save the stack; well is when nothing that it names is lost."""
    from scheduler.store import open_driver
    from scheduler.upkeep import backup

    with _opened(config) as database:
        saved = backup.backup(
            database,
            open_driver(config),
            arguments.directory.absolute(),
            with_blobs=not arguments.no_blobs,
            link=not arguments.copy,
            tell=tell,
        )
    return asdict(saved), not saved.lost


def restore(config: Settings, arguments: Namespace) -> dict[str, Any]:
    """Fill an empty stack from a backup, or only verify the backup."""
    from scheduler.store import open_driver
    from scheduler.store.directory import Directory
    from scheduler.upkeep import backup, restore

    source, name = arguments.directory.absolute(), arguments.snapshot
    if not arguments.check:
        return asdict(restore.restore(config.sql_url, open_driver(config), source, name, tell=tell))
    _, found = backup.find(source, name)
    driver = Directory(source) if found.with_blobs else open_driver(config)
    return asdict(backup.verify(source, driver, found.name, deep=True, tell=tell))


def tell(line: str) -> None:
    """Say what is being done, on standard error."""
    sys.stderr.write(f"{line}\n")


@contextmanager
def _opened(config: Settings) -> Iterator[Database]:
    database = Database(config.sql_url)
    try:
        yield database
    finally:
        database.close()
