"""Data sets: what there is, how one is uploaded, and how long its rows are."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flask import redirect, render_template, request, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from espalier.errors import Conflict, EspalierError, InvalidInput, NotFound
from espalier.refs import parse_artifact
from espalier.splits import SPLITS
from espalier.states import ArtifactKind
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import registry
from scheduler.contents import datasets
from scheduler.contents.judging import reader
from scheduler.models import Version
from scheduler.queries import Document, browse
from scheduler.queries.artifacts import find_artifact
from scheduler.queries.browse import Filters
from web.auth import actor
from web.pages.blueprint import pages, reading
from web.pages.format import ref_url
from web.pages.upload import MOST, Broken, DataFiles, publish_files
from web.services import services

#: Rows whose tokens are counted for a histogram.
COUNTED = 5000


@pages.get("/data")
def data() -> str:
    return _page()


@pages.post("/data")
def dataset() -> AnyResponse | tuple[str, int]:
    """Publish what was uploaded, if every line of it can be trained on."""
    request.max_content_length = MOST
    with TemporaryDirectory() as folder:
        files = DataFiles({})
        try:
            files = DataFiles.of(request.files.getlist("file"), Path(folder))
            files.check()
            files.split()
            name = request.form.get("name", "").strip()
            made = publish_files(services().database, services().blobs, actor(), name, files)
        except (InvalidInput, NotFound, Conflict) as error:
            return _page(error, files.broken(error)), error.status
    with reading() as db:
        ref = registry.label(db.get_one(Version, made))
    return redirect(ref_url(ref) or url_for("pages.data"), 303)


def _page(error: EspalierError | None = None, broken: list[Broken] | None = None) -> str:
    with reading() as db:
        found = browse.page(db, actor(), Filters(kind=ArtifactKind.DATASET))
    wrong = {str(fault["loc"][0]): fault["msg"] for fault in error.errors} if error else {}
    return render_template(
        "data.html", section="Data", artifacts=found, error=error, wrong=wrong,
        broken=broken or [], name=request.form.get("name", ""),
    )  # fmt: skip


# --- What a data set's own page shows -----------------------------------------------------


def preview(db: Session, version: Version, tokenizer: str | None) -> Document | None:
    """Return a data set's format, first rows and lengths; None where nobody has read it.

    ``tokenizer`` is the team's model whose tokens are counted; without one it is characters.
    """
    found = version.meta.get("dataset")
    if version.artifact.kind != ArtifactKind.DATASET or not isinstance(found, dict):
        return None
    lengths: Any = found["lengths"]
    if tokenizer:
        lengths = _token_lengths(db, version, tokenizer)
    names = browse.names_of(db, actor(), ArtifactKind.MODEL)
    return {**found, "lengths": lengths, "tokenizer": tokenizer, "models": names}


def _token_lengths(db: Session, version: Version, tokenizer: str) -> datasets.Histogram:
    ref = parse_artifact(tokenizer)
    find_artifact(db, actor(), ref.project, ref.name)
    model = registry.resolve(db, ref)
    files = {file.path: file.sha256 for file in model.files}
    if "tokenizer.json" not in files:
        raise NotFound(f"{tokenizer} has no tokenizer.json.", hint="Choose another model.")
    blobs = services().blobs
    words = b"".join(blobs.open(files["tokenizer.json"]))
    rows = islice(_rows(blobs, version), COUNTED)
    features = version.meta["dataset"].get("features")
    return datasets.token_lengths(rows, words, features)


def _rows(blobs: Blobs, version: Version) -> Iterator[dict[str, Any]]:
    """Yield the rows of the data set's main split."""
    files = {file.path: file.sha256 for file in version.files}
    main = next(f"{s}.jsonl" for s in SPLITS if f"{s}.jsonl" in files)
    with reader(blobs, files[main]) as lines:
        for line in lines:
            yield json.loads(line)
