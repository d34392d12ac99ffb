"""What a version is, as bytes: one canonical JSON document, whose sha1 is the version's commit.

Manifests are stored as blobs beside the files they list, so that the registry can be rebuilt from
the store alone. Pure.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from espalier.errors import InvalidInput
from espalier.messages import FileEntry
from espalier.refs import check_path
from espalier.states import ArtifactKind


@dataclass(frozen=True, slots=True)
class History:
    """Where a commit stands: its branch, the commit before it there, what its author says of it.

    With it the same files committed later, on another commit, are another version.
    """

    branch: str
    previous: str | None
    message: str


#: The keys of every manifest, and those that commits have besides.
KEYS = frozenset({"artifact", "kind", "files", "parents", "meta", "job"})
HISTORY_KEYS = frozenset({"branch", "previous", "message"})


def build(
    artifact: str,
    kind: ArtifactKind,
    *,
    files: Mapping[str, tuple[FileEntry, str]],
    parents: Iterable[tuple[str, str, str]],
    meta: Mapping[str, Any],
    job: str | None,
    history: History | None = None,
) -> bytes:
    """Return the manifest of a version of ``artifact`` (``project/name``).

    ``files`` maps path to entry and git oid; ``parents`` are (role, ref, commit); ``job`` is the
    id of the job that made it. The order of files and parents makes no difference. Versions that
    are no commits of a branch's history have no ``history``: the same is the same, whenever it is
    published.
    """
    return canonical(
        {
            "artifact": artifact,
            "kind": kind.value,
            "files": {
                path: {"sha256": file.sha256, "size": file.size, "git_oid": oid}
                for path, (file, oid) in files.items()
            },
            "parents": [
                {"role": role, "ref": ref, "commit": commit}
                for role, ref, commit in sorted(set(parents))
            ],
            "meta": meta,
            "job": job,
            **(asdict(history) if history else {}),
        }
    )


def canonical(document: Mapping[str, Any]) -> bytes:
    """Return the one JSON text of ``document``: sorted keys, no spaces, UTF-8.

    Raises InvalidInput for what JSON does not have (NaN, infinity, a lone surrogate).
    """
    try:
        text = json.dumps(
            document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"A version's meta must be plain JSON: {error}.") from error


def commit(manifest: bytes) -> str:
    """Return the version's name: the manifest's sha1, 40 hexadecimal digits."""
    return hashlib.sha1(manifest, usedforsecurity=False).hexdigest()


def clashes(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) for files that could not lie beside each other on a Mac's disk.

    Raises InvalidInput for a path that leaves its folder.
    """
    if not paths:
        yield "", "A version needs at least one file"
    seen: dict[str, str] = {}
    for path in paths:
        folded = unicodedata.normalize("NFC", check_path(path)).casefold()
        if folded in seen:
            yield path, f"it and {seen[folded]} are one name on a disk that ignores case"
        seen[folded] = path
    for folded, path in seen.items():
        for folder in PurePosixPath(folded).parents:
            if str(folder) in seen:
                yield path, f"{seen[str(folder)]} is a file and cannot be its folder as well"
