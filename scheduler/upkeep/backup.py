"""Backups: one moment of SQL, and every blob that it names, in a folder.

    DIR/blobs/sha256/ab/<sha256>           of all snapshots; none is copied twice
    DIR/snapshots/<time>/<table>.jsonl     scheduler.upkeep.snapshot
    DIR/snapshots/<time>/manifest.json     written last: without it there is no snapshot

SQL comes first, then the blobs: a blob is written before the row that names it, so all that the
snapshot names is in the store by then; the other order would miss what was published between.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Table
from sqlalchemy.exc import SQLAlchemyError

import espalier
from espalier.errors import Conflict, InvalidInput, NotFound
from espalier.ids import new_id
from scheduler.bytes import gc
from scheduler.db import Database, now
from scheduler.models import Blob
from scheduler.store.base import Driver, blob_key
from scheduler.store.copying import Differs, copy_blob, hash_blob
from scheduler.store.directory import Directory
from scheduler.upkeep import snapshot
from scheduler.upkeep.snapshot import TableFile

FORMAT = 1
MANIFEST, SNAPSHOTS = "manifest.json", "snapshots"
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Saved:
    """A snapshot's manifest. ``revision`` is the schema's; sizes are bytes of blobs.

    ``gone`` are blobs that nothing referred to and garbage collection had taken; ``lost`` are
    blobs that something refers to and the store has lost: a restore marks them.
    """

    name: str
    revision: str
    database: str
    store: str
    tables: dict[str, TableFile]
    blobs: int = 0
    bytes: int = 0
    copied: int = 0
    copied_bytes: int = 0
    with_blobs: bool = True
    gone: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    format: int = FORMAT
    version: str = espalier.__version__


@dataclass(slots=True)
class _Copied:
    blobs: int = 0
    bytes: int = 0
    copied: int = 0
    copied_bytes: int = 0
    gone: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def backup(
    database: Database,
    driver: Driver,
    target: Path,
    *,
    with_blobs: bool = True,
    link: bool = True,
    tell: Tell = lambda _: None,
) -> Saved:
    """Take a snapshot into ``target``, and copy the blobs that are not there yet.

    The stack may run; garbage collection waits meanwhile. Raises Conflict while another backup
    runs, StorageFull, Unavailable; what a failed one copied is used by the next.
    """
    kept = Directory(target)
    _make_private(target / SNAPSHOTS)
    _clear_drafts(target / SNAPSHOTS)
    with _holding_garbage(database):
        with snapshot.consistent(database) as session:
            name = f"{now(session):%Y%m%dT%H%M%S.%fZ}"
            draft = target / SNAPSHOTS / f".{name}.{os.getpid()}"
            draft.mkdir(mode=0o700)
            revision = snapshot.revision(session)
            files: dict[str, TableFile] = {}
            for table in snapshot.tables():
                tell(f"table {table.name}")
                files[table.name] = snapshot.dump(session, table, draft / f"{table.name}.jsonl")
        copied = _Copied()
        if with_blobs:
            copied = _copy_all(database, driver, kept, draft, link=link, tell=tell)
    saved = Saved(
        name=name,
        revision=revision,
        database=database.engine.dialect.name,
        store=driver.place,
        tables=files,
        with_blobs=with_blobs,
        **{**asdict(copied), "gone": tuple(copied.gone), "lost": tuple(copied.lost)},
    )
    _write_manifest(draft, saved)
    draft.rename(target / SNAPSHOTS / name)
    _sync_folder(target / SNAPSHOTS)
    return saved


def _copy_all(
    database: Database, driver: Driver, kept: Directory, draft: Path, *, link: bool, tell: Tell
) -> _Copied:
    done = _Copied()
    for row in snapshot.read(draft / f"{Blob.__tablename__}.jsonl", _blobs()):
        sha256, size = row["sha256"], row["size"]
        done.blobs += 1
        done.bytes += size
        if done.blobs % 100 == 1:
            tell(f"blob {done.blobs}, {done.copied_bytes} bytes copied")
        if kept.size(blob_key(sha256)) == size:
            continue
        try:
            copy_blob(driver, kept, sha256, size, link=link)
        except (NotFound, Differs):
            with database.reading() as session:
                still = session.get(Blob, sha256) is not None
            (done.lost if still else done.gone).append(sha256)
            continue
        done.copied += 1
        done.copied_bytes += size
    return done


@contextmanager
def _holding_garbage(database: Database) -> Iterator[None]:
    """Hold garbage collection up, saying so again as long as the block runs."""
    holder, ended = new_id(), threading.Event()
    gc.hold(database, holder)

    def again() -> None:
        while not ended.wait(gc.HOLD.total_seconds() / 5):
            with suppress(SQLAlchemyError, Conflict):  # it holds for a while; then again
                gc.hold(database, holder)

    thread = threading.Thread(target=again, name="hold", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        gc.let_go(database, holder)


def _make_private(folder: Path) -> None:
    """Make the folder, which only this user can read: there is the team's data in it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be a folder for backups: {error}.") from error


def _clear_drafts(folder: Path) -> None:
    """Remove what killed backups left; another one that runs holds the same lock as we will."""
    for draft in folder.glob(".*Z.*"):
        if _is_dead(int(draft.name.rsplit(".", 1)[-1])):
            for path in draft.iterdir():
                path.unlink()
            draft.rmdir()


def _is_dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _write_manifest(folder: Path, saved: Saved) -> None:
    with (folder / MANIFEST).open("x", encoding="utf-8") as file:
        json.dump(asdict(saved), file, indent=1, sort_keys=True)
        snapshot.sync(file)
    _sync_folder(folder)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _blobs() -> Table:
    table = Blob.__table__
    assert isinstance(table, Table)
    return table


# --- Looking at one -----------------------------------------------------------------------


def find(source: Path, name: str | None = None) -> tuple[Path, Saved]:
    """Return the folder and the manifest of a snapshot: the newest that is complete, or ``name``.

    Raises NotFound, InvalidInput for one that this version cannot read.
    """
    folder = source / SNAPSHOTS
    names = sorted(
        (path.name for path in folder.glob("*Z") if _NAME.fullmatch(path.name)), reverse=True
    )
    if not names:
        raise NotFound(f"There is no backup in {source}.", hint="`espalier backup DIR` makes one.")
    if name is not None and name not in names:
        raise NotFound(f"{source} has no snapshot {name}: it has {', '.join(names[:5])}.")
    chosen = folder / (name or names[0])
    try:
        document = json.loads((chosen / MANIFEST).read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise InvalidInput(f"{chosen} has format {document['format']}; this reads {FORMAT}.")
        return chosen, _saved(document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{chosen / MANIFEST} cannot be read: {error}.") from error


def _saved(document: dict[str, Any]) -> Saved:
    tables = {name: TableFile(**file) for name, file in document.pop("tables").items()}
    gone, lost = tuple(document.pop("gone")), tuple(document.pop("lost"))
    return Saved(tables=tables, gone=gone, lost=lost, **document)


def verify(
    source: Path, driver: Driver, name: str | None = None, *, deep: bool, tell: Tell
) -> Saved:
    """Read a snapshot's tables against its manifest, and look for each of its blobs.

    ``driver`` is where they are: the backup, or the bucket itself for one without blobs. ``deep``
    hashes them all. Raises InvalidInput with the first that is not as it should be.
    """
    folder, saved = find(source, name)
    for table in snapshot.tables():
        tell(f"table {table.name}")
        if table.name not in saved.tables:
            raise InvalidInput(f"{folder} has no table {table.name}.")
        snapshot.check(folder / f"{table.name}.jsonl", saved.tables[table.name])
    for number, (sha256, size) in enumerate(named_blobs(folder, saved)):
        if number % 100 == 0:
            tell(f"blob {number} of {saved.blobs}")
        found = driver.size(blob_key(sha256))
        if found != size:
            there = "is not there" if found is None else f"has {found} bytes, not {size}"
            raise InvalidInput(f"Blob {sha256} of {folder.name} {there}, in {driver.place}.")
        if deep and hash_blob(driver, sha256) != sha256:
            raise InvalidInput(f"Blob {sha256} of {folder.name} has other bytes.")
    return saved


def named_blobs(folder: Path, saved: Saved) -> Iterator[tuple[str, int]]:
    """Yield (sha256, bytes) of the blobs that a restore needs."""
    without = {*saved.gone, *saved.lost}
    for row in snapshot.read(folder / f"{Blob.__tablename__}.jsonl", _blobs()):
        if row["sha256"] not in without and row["damaged_at"] is None:
            yield row["sha256"], row["size"]
