"""The registry made anew of the store alone: of heads, which name versions, and of manifests.

For the day when the database is gone and there is no backup of it. Projects, artifacts, versions
with their numbers, branches, messages, tags, aliases and gates, former names and lineage come
back; people, tokens, jobs and their logs do not. No byte is believed: every blob is read and
hashed before its row is written (scheduler.upkeep.rewriting).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from espalier.errors import Conflict, NotFound
from scheduler.access import SYSTEM, audit
from scheduler.bytes.blobrows import Digests, digests
from scheduler.catalog import heads, manifests
from scheduler.db import Database
from scheduler.models import Artifact, Blob
from scheduler.store.base import BLOBS, Driver, blob_key
from scheduler.upkeep.rewriting import Found, Line, Rebuilt, Writer

#: How every manifest begins: canonical JSON sorts its keys.
_MAGIC = b'{"artifact":"'
#: No manifest is longer; larger objects are not looked into.
_MAX_MANIFEST = 64 << 20


def rebuild(
    database: Database,
    driver: Driver,
    *,
    adopt: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Rebuilt:
    """Fill an empty registry from the store; called again after a crash, it begins anew.

    ``adopt`` makes versions of manifests that no head names too, numbered behind the others: they
    were published in the last moments before the database was lost, or deleted from it, or forged
    by somebody who may upload. Raises Conflict when the registry is not empty.
    """
    _must_be_empty(database)
    result = Rebuilt()
    tell("heads and manifests")
    lines = _read_lines(driver, result)
    _look_for_loose(driver, lines, result, adopt=adopt)
    blobs = _hash_all(driver, lines, result, tell)
    tell("the database")
    with database.transaction() as session:
        Writer(session, lines, blobs, result).write()
        audit(session, SYSTEM, "registry.rebuild", driver.place[:320], {"blobs": result.blobs})
    return result


def _must_be_empty(database: Database) -> None:
    with database.reading() as session:
        for table in (Artifact, Blob):
            if session.scalar(select(func.count()).select_from(table)):
                raise Conflict(
                    "The registry is not empty: it can be rebuilt in a new database only.",
                    hint="`espalier fsck --repair` puts single things right. To begin anew, move"
                    " the database away first.",
                )


# --- Reading the store --------------------------------------------------------------------


def _read_lines(driver: Driver, result: Rebuilt) -> dict[str, Line]:
    """Return artifact (``project/name``) → what its head and its manifests say."""
    newest: dict[str, dict[str, Any]] = {}
    for key, head in heads.read_all(driver):
        if head is None:
            result.lost.append(f"{key} is no head that can be read.")
            continue
        # An artifact that was moved may have left a head under its old name, which says less.
        mine = str(head.get("id") or key)
        if head.get("revision", 0) >= newest.get(mine, {}).get("revision", 0):
            newest[mine] = head
    lines: dict[str, Line] = {}
    for head in newest.values():
        line = Line.of(head)
        lines[line.path] = line
        for entry in head["versions"]:
            found = _read_version(driver, entry, result, line)
            if found is not None:
                line.versions[entry["number"]] = found
    return lines


def _read_version(
    driver: Driver, entry: dict[str, Any], result: Rebuilt, line: Line
) -> Found | None:
    name = f"{line.path}@v{entry['number']}"
    try:
        data = b"".join(driver.open(blob_key(entry["manifest"])))
    except NotFound:
        result.lost.append(f"{name}: its manifest {entry['manifest']} is not in the store.")
        return None
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != entry["manifest"] or manifests.commit(data) != entry["commit"]:
        result.lost.append(f"{name}: its manifest {entry['manifest']} has other bytes.")
        return None
    manifest = json.loads(data)
    if manifest["artifact"] != line.path and not line.former:
        result.lost.append(f"{name}: its manifest is of {manifest['artifact']}.")
        return None
    return Found(entry, manifest, len(data))


def _look_for_loose(
    driver: Driver, lines: dict[str, Line], result: Rebuilt, *, adopt: bool
) -> None:
    known = {found.entry["manifest"] for line in lines.values() for found in line.versions.values()}
    known |= {sha256 for sha256, _ in _files(lines)}
    for modified, sha256, manifest, data in sorted(
        _loose(driver, known), key=lambda found: found[:2]
    ):
        result.loose += 1
        commit = manifests.commit(data)
        if not adopt:
            result.lost.append(
                f"{manifest['artifact']}, commit {commit}: no head names it; --adopt takes it in."
            )
            continue
        line = _line_of(lines, manifest)
        number = max([line.latest, *line.versions]) + 1
        entry = {
            "number": number,
            "commit": commit,
            "manifest": sha256,
            "created_at": modified.isoformat(),
        }
        line.versions[number] = Found(entry, manifest, len(data))


def _line_of(lines: dict[str, Line], manifest: dict[str, Any]) -> Line:
    """Return the artifact that a manifest is of, by its name now or before; made if absent."""
    path = manifest["artifact"]
    moved = (line for line in lines.values() if path in line.former)
    line = lines.get(path) or next(moved, None)
    if line is None:
        project, _, name = path.partition("/")
        line = lines[path] = Line(project, name, manifest["kind"])
    return line


def _loose(
    driver: Driver, known: set[str]
) -> Iterator[tuple[datetime, str, dict[str, Any], bytes]]:
    """Yield (modified, sha256, manifest, its bytes) of manifests that are not ``known``."""
    for stored in driver.list(BLOBS):
        sha256 = stored.key.rsplit("/", 1)[-1]
        if sha256 in known or stored.key != blob_key(sha256) or stored.size > _MAX_MANIFEST:
            continue
        if b"".join(driver.open(stored.key, 0, len(_MAGIC))) != _MAGIC:
            continue
        data = b"".join(driver.open(stored.key))
        try:
            manifest = json.loads(data)
            sound = manifests.canonical(manifest) == data and _is_manifest(manifest)
        except ValueError:
            continue
        if sound and hashlib.sha256(data).hexdigest() == sha256:
            yield stored.modified, sha256, manifest, data


def _is_manifest(document: dict[str, Any]) -> bool:
    return document.keys() in (manifests.KEYS, manifests.KEYS | manifests.HISTORY_KEYS)


def _files(lines: dict[str, Line]) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in lines.values():
        for found in line.versions.values():
            for file in found.manifest["files"].values():
                yield file["sha256"], file


def _hash_all(
    driver: Driver, lines: dict[str, Line], result: Rebuilt, tell: Callable[[str], None]
) -> dict[str, Digests | None]:
    """Return sha256 → what was read back, None where it is gone or is something else."""
    wanted = {sha256: int(file["size"]) for sha256, file in _files(lines)}
    for line in lines.values():
        wanted |= {found.entry["manifest"]: found.size for found in line.versions.values()}
    read: dict[str, Digests | None] = {}
    for number, (sha256, size) in enumerate(wanted.items()):
        if number % 100 == 0:
            tell(f"blobs, {number} of {len(wanted)}")
        read[sha256] = None
        if driver.size(blob_key(sha256)) == size:
            found = digests(driver.open(blob_key(sha256)), size)
            read[sha256] = found if (found.sha256, found.size) == (sha256, size) else None
    return read
