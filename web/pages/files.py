"""A version's files: folder by folder, and what is in one of them, told from a few of its bytes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import Any

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from espalier.errors import NotFound
from espalier.refs import ArtifactRef, check_path
from scheduler.catalog import registry
from scheduler.contents import previews
from scheduler.contents.previews import Odd, Read
from scheduler.queries import Document, versions
from web.auth import actor
from web.pages import cards
from web.pages.artifacts import found_version, start_of
from web.pages.blueprint import pages, reading
from web.services import services

#: Files that are shown as text whatever their bytes; others are tried, and may be none.
_WEIGHTS = (".safetensors", ".gguf", ".npz", ".bin", ".parquet", ".arrow")


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page shows of a file: ``how`` names the part of the template."""

    how: str
    value: Any
    cut: bool = False


@pages.get("/<project>/<name>/v/<selector>/files/", defaults={"path": ""})
@pages.get("/<project>/<name>/v/<selector>/files/<path:path>")
def files(project: str, name: str, selector: str, path: str) -> str:
    """A folder's entries, a page at a time, or a file with what is in it."""
    below = check_path(path.rstrip("/")) if path else ""
    with reading() as db:
        _, chosen = found_version(db, ArtifactRef(project, name, selector))
        facts = versions.facts(db, actor(), chosen)
        file = versions.file_of(db, chosen, below) if below else None
        entries = [] if file else versions.folder(db, chosen, below)
        if below and not file and not entries:
            raise NotFound(f"{registry.label(chosen)} has no file {below!r}.")
    context: Document = {"version": facts, "path": below, "crumbs": _crumbs(below)}
    if file is not None:
        shown = _shown(file.path, file.sha256, file.size, facts)
        return render_template("file.html", section="Artifacts", file=file, shown=shown, **context)
    number = max(1, request.args.get("page", 1, type=int))
    first = (number - 1) * versions.ENTRIES
    return render_template(
        "files.html", section="Artifacts", entries=entries[first : first + versions.ENTRIES],
        total=len(entries), number=number, last=max(1, -(-len(entries) // versions.ENTRIES)),
        **context,
    )  # fmt: skip


@pages.get("/<project>/<name>/blob/<selector>/<path:path>")
@pages.get("/<project>/<name>/tree/<selector>/<path:path>")
@pages.get("/datasets/<project>/<name>/blob/<selector>/<path:path>")
@pages.get("/datasets/<project>/<name>/tree/<selector>/<path:path>")
def file_elsewhere(project: str, name: str, selector: str, path: str) -> AnyResponse:
    """Where the hub's clients say that a file is."""
    return redirect(
        url_for("pages.files", project=project, name=name, selector=selector, path=path)
    )


def _crumbs(path: str) -> list[tuple[str, str]]:
    """Return (name, path) of each folder on the way, and of the last entry."""
    parts = path.split("/") if path else []
    return [(part, "/".join(parts[: i + 1])) for i, part in enumerate(parts)]


# --- What is in a file --------------------------------------------------------------------


def _shown(path: str, sha256: str, size: int, facts: Document) -> Shown:
    """Return what can be told about a file; for one that lies, a sentence."""
    suffix = PurePosixPath(path).suffix.lower()
    try:
        if suffix in (".safetensors", ".gguf"):
            return Shown("tensors", _header(suffix, sha256, size))
        if suffix == ".jsonl":
            start = max(0, request.args.get("at", 0, type=int))
            return Shown("rows", previews.rows(_read(sha256), size, start))
        if suffix == ".md":
            first = url_for(
                "pages.files", project=facts["project"], name=facts["name"],
                selector=facts["number"],
            )  # fmt: skip
            return Shown("card", cards.card(start_of(sha256, min(size, cards.MOST)), first, size))
        if suffix == ".json" and size <= previews.MAX_JSON:
            return _document(sha256, size)
        if suffix in _WEIGHTS:
            return Shown("odd", "What is in files of this kind is not shown.")
        value = previews.text(_read(sha256), size)
        return Shown("text", value, size > previews.MAX_TEXT)
    except Odd as error:
        return Shown("odd", str(error))


def _document(sha256: str, size: int) -> Shown:
    value = previews.document(_read(sha256), size)
    most = previews.MAX_TEXT
    return Shown("text", value[:most], len(value) > most)


@lru_cache(maxsize=32)
def _header(suffix: str, sha256: str, size: int) -> previews.Header:
    """Return a file's header; what has a sha256 is read once."""
    tell: Callable[[Read, int], previews.Header] = (
        previews.gguf if suffix == ".gguf" else previews.safetensors
    )
    return tell(_read(sha256), size)


def _read(sha256: str) -> Read:
    return partial(_range, sha256)


def _range(sha256: str, start: int, length: int) -> bytes:
    return b"".join(services().blobs.open(sha256, start, length)) if length else b""


def pretty(value: Any) -> str:
    """Return a row's value as text for people."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
