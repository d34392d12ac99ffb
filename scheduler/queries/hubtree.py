"""Trees of revisions: folders and files, a page at a time, sorted by the database.

Paths are compared by their bytes, on both databases: what is in one folder lies together then.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import chain as chained

from sqlalchemy import ColumnElement, Select, String, func, literal, select
from sqlalchemy.orm import Session

from scheduler.models import Blob, Version, VersionFile
from scheduler.queries import Document, stamp
from scheduler.queries.history import line_of, title_of
from scheduler.queries.hub import File, entry, files_of, folder

#: Versions that are looked through for the one that a file was last changed in.
_HISTORY = 200


def children(
    session: Session, version: Version, below: str, after: str, limit: int
) -> list[Document]:
    """Return up to ``limit`` entries of the folder ``below`` ("" is the root) behind ``after``."""
    prefix = f"{below}/" if below else ""
    path = _path(session)
    slash = _position(session, func.substr(VersionFile.path, len(prefix) + 1), "/")
    inside = _below(path, prefix), VersionFile.version_id == version.id
    files = _files(path).where(*inside, slash == 0, path > after).order_by(path).limit(limit)
    name = func.substr(VersionFile.path, 1, len(prefix) + slash - 1, type_=String)
    sorted_name = name.collate(_collation(session))
    folders = (
        select(name)
        .where(*inside, slash > 0, sorted_name > after)
        .group_by(name)
        .order_by(sorted_name)
        .limit(limit)
    )
    found = [folder(one) for one in session.scalars(folders)]
    found += [entry(File(*row)) for row in session.execute(files)]
    return sorted(found, key=lambda item: item["path"].encode())[:limit]


def everything(
    session: Session, version: Version, below: str, after: str, limit: int
) -> list[Document]:
    """Return up to ``limit`` entries of all folders under ``below``, behind the place ``after``.

    A folder comes right before the first of what is in it, so its place ends with a slash.
    """
    prefix = f"{below}/" if below else ""
    path = _path(session)
    query = _files(path).where(VersionFile.version_id == version.id, _below(path, prefix))
    rows = session.execute(query.where(path > after).order_by(path).limit(limit + 1))
    told = set(_parents(after, prefix))
    found: list[Document] = []
    for row in rows:
        for parent in _parents(row.path, prefix):
            if parent not in told:
                told.add(parent)
                found.append(folder(parent))
        found.append(entry(File(*row)))
    return found[:limit]


def place(item: Document, *, recursive: bool) -> str:
    """Return where an entry stands, for the page that follows it."""
    path: str = item["path"]
    return f"{path}/" if recursive and item["type"] == "directory" else path


def named(session: Session, version: Version, paths: Collection[str]) -> list[Document]:
    """Return the entries of these paths, files and folders, those that are there."""
    ordered = sorted(set(paths))
    files = list(
        chained.from_iterable(
            files_of(session, version, ordered[first : first + 1000])
            for first in range(0, len(ordered), 1000)
        )
    )
    left = set(ordered) - {file.path for file in files}
    found = [entry(file) for file in files]
    if left:
        every = select(VersionFile.path).where(VersionFile.version_id == version.id)
        folders = {parent for path in session.scalars(every) for parent in _parents(path, "")}
        found += [folder(path) for path in sorted(left & folders)]
    return found


def add_last_commits(session: Session, version: Version, entries: Sequence[Document]) -> None:
    """Tell of each file the commit that made it what it is, as far as the history is looked at."""
    paths = [item["path"] for item in entries if item["type"] == "file"]
    line = line_of(session, version)[:_HISTORY]
    held: dict[str, dict[str, str]] = {path: {} for path in paths}
    for first in range(0, len(paths), 500):
        rows = session.execute(
            select(VersionFile.path, VersionFile.version_id, VersionFile.sha256).where(
                VersionFile.version_id.in_([step.id for step in line]),
                VersionFile.path.in_(paths[first : first + 500]),
            )
        )
        for path, version_id, sha256 in rows:
            held[path][version_id] = sha256
    for item in entries:
        if item["type"] != "file":
            continue
        last, versions = line[0], held[item["path"]]
        for step in line:
            if versions.get(step.id) != versions.get(line[0].id):
                break
            last = step
        item["lastCommit"] = {
            "id": last.commit,
            "title": title_of(last),
            "date": stamp(last.created_at),
        }
        item["securityFileStatus"] = {
            "status": "unscanned",
            "avScan": None,
            "pickleImportScan": None,
        }


# --- In the database's words --------------------------------------------------------------


def _files(path: ColumnElement[str]) -> Select[str, int, str, str]:
    return select(path.label("path"), VersionFile.size, VersionFile.sha256, Blob.git_oid).join(
        Blob, Blob.sha256 == VersionFile.sha256
    )


def _collation(session: Session) -> str:
    return "C" if session.get_bind().dialect.name == "postgresql" else "BINARY"


def _path(session: Session) -> ColumnElement[str]:
    return VersionFile.path.collate(_collation(session))


def _below(path: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    """Return the condition for paths that begin so; "0" is what follows "/"."""
    return (path >= prefix) & (path < prefix[:-1] + "0") if prefix else path > ""


def _position(session: Session, text: ColumnElement[str], part: str) -> ColumnElement[int]:
    function = func.strpos if session.get_bind().dialect.name == "postgresql" else func.instr
    found: ColumnElement[int] = function(text, literal(part))
    return found


def _parents(path: str, prefix: str) -> Iterator[str]:
    """Yield the folders of a path below ``prefix``, the outermost first."""
    end = path.find("/", len(prefix))
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)
