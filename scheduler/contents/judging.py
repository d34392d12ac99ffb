"""What is inside of what people bring: read, judged, and told in a version's meta.

Nothing is published that has not been looked into, natively (scheduler.catalog.publishing) or over
the hub (scheduler.catalog.commits). The store is read here, so no transaction is open meanwhile.
"""

import io
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from espalier.messages import FileEntry
from espalier.peft import is_peft
from espalier.splits import SPLITS
from espalier.states import ArtifactKind
from espalier.vetting import is_config, is_vetted, vet_file
from scheduler.bytes.blobs import Blobs
from scheduler.bytes.streams import stream
from scheduler.contents import datasets

#: What loaders cannot do without: one of each group, by the file's name or its end.
NEEDED: dict[ArtifactKind, tuple[tuple[str, ...], ...]] = {
    ArtifactKind.MODEL: (
        ("config.json",),
        (".safetensors",),
        ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    ),
    ArtifactKind.ADAPTER: (("adapter_config.json",), ("adapters.safetensors",)),
    ArtifactKind.GGUF: ((".gguf",),),
    ArtifactKind.DATASET: (("train.jsonl", "test.jsonl"),),
}
_SPLIT_FILES = frozenset(f"{split}.jsonl" for split in SPLITS)


def lacking(kind: ArtifactKind, paths: Collection[str]) -> tuple[str, ...]:
    """Return the names, one of which would do, that loaders of the kind do not find; () is fine."""
    for group in NEEDED.get(kind, ()):
        if not any(_matches(path, group) for path in paths):
            return group
    return ()


def advice(paths: Collection[str]) -> str | None:
    """Return the next step for somebody whose files lack what loaders need."""
    if is_peft(set(paths)):
        return (
            "This is an adapter of PEFT: `espalier adapter import DIR PROJECT/NAME` converts and"
            " publishes it."
        )
    return None


def _matches(path: str, group: tuple[str, ...]) -> bool:
    return any(path.endswith(name) if name.startswith(".") else path == name for name in group)


def kind_by_content(paths: Collection[str]) -> ArtifactKind:
    """Return what a repository that is called a model is: an adapter, a GGUF file, or one."""
    if not lacking(ArtifactKind.ADAPTER, paths):
        return ArtifactKind.ADAPTER
    if not lacking(ArtifactKind.GGUF, paths) and lacking(ArtifactKind.MODEL, paths):
        return ArtifactKind.GGUF
    return ArtifactKind.MODEL


def judge(
    blobs: Blobs, kind: ArtifactKind, files: Sequence[FileEntry], meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what was found out, for the version's meta.

    Raises InvalidInput naming file, line and column for data that cannot train, and file and
    reason for a model that could run code or lies about itself.
    """
    if kind == ArtifactKind.DATASET:
        opened = {file.path: partial(reader, blobs, file.sha256) for file in files}
        return {"dataset": datasets.check(opened, meta.get("features")).as_meta()}
    vet_contents(blobs, files)
    return {}


def vet_contents(blobs: Blobs, files: Sequence[FileEntry]) -> None:
    """Raise InvalidInput for the first file whose content is refused; little of each is read."""
    for file in files:
        if is_vetted(file.path):
            with reader(blobs, file.sha256) as content:
                vet_file(file.path, content, file.size)


def is_made(kind: ArtifactKind, path: str) -> bool:
    """Say whether the file is what a job works for: data, weights and what describes them."""
    if kind == ArtifactKind.DATASET:
        return is_data(path)
    return path.endswith((".safetensors", ".gguf")) or is_config(path)


def is_data(path: str) -> bool:
    """Say whether trainings and evals read this file of a data set."""
    return path in _SPLIT_FILES


def reader(blobs: Blobs, sha256: str) -> io.BufferedReader:
    """Return a blob as a file that is read forward; what is not read is not fetched."""
    return stream(blobs.open(sha256))
