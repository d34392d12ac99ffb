"""Finding out what is known of a job's inputs: from SQL first, then from the store.

``Look`` follows references within one short reading session; ``Reading`` reads configs and the
heads of adapters afterwards, so that no transaction waits for the store. A store that does not
answer leaves them unknown.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier import memory
from espalier.errors import EspalierError
from espalier.refs import ArtifactRef, JobRef, StepRef, parse_ref
from espalier.specs import Spec, TrainSpec, plain_role
from scheduler import access
from scheduler.access import Actor
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import registry
from scheduler.contents import previews
from scheduler.lifecycle.roles import role_kind, spec_of
from scheduler.lifecycle.submit import find_job
from scheduler.models import Lineage, ModelConfig, Version
from scheduler.placing.estimates import MAX_CONFIG
from scheduler.refusals.facts import Adapter, Data, Known, Model, adapter_of

#: Bytes of a tokenizer.json that are read; the largest seen has 33 MB.
MAX_TOKENIZER = 64 << 20
#: Jobs that made one another, followed back.
DEPTH = 8
_CHECKPOINT = re.compile(r"(\d{7,})_adapters\.safetensors")


@dataclass(frozen=True, slots=True)
class Stored:
    """A version in the store: its files (path → sha256, bytes) and what it was made from."""

    label: str
    kind: str
    files: Mapping[str, tuple[str, int]]
    meta: Mapping[str, Any]
    base: "Stored | None" = None


@dataclass(frozen=True, slots=True)
class Made:
    """What a job or a step will make, out of ``inputs`` by role."""

    label: str
    spec: Spec
    inputs: Mapping[str, "Source"] = field(default_factory=dict)


Source = Stored | Made


class Look:
    """Follows the references of specs; ``steps`` are those of the same pipeline before it.

    What ``actor`` may not see is not known, and so nothing is told of it.
    """

    def __init__(
        self, session: Session, actor: Actor, project: str, steps: Mapping[str, Made]
    ) -> None:
        self._session = session
        self._actor = actor
        self._project = project
        self._steps = steps

    def inputs(self, spec: Spec, depth: int = DEPTH) -> dict[str, Source]:
        """Return what is known of a spec's inputs by role; unknown ones are left out."""
        found = {}
        for role, text in spec.refs().items():
            source = self._source(role, text, depth)
            if source is not None:
                found[role] = source
        return found

    def _source(self, role: str, text: str, depth: int) -> Source | None:
        ref = parse_ref(text, project=self._project)
        if isinstance(ref, StepRef):
            return self._steps.get(ref.step)
        try:
            if isinstance(ref, JobRef):
                return self._job(ref, role, depth)
            if isinstance(ref, ArtifactRef):
                access.project_for(self._session, self._actor, ref.project)
                return self._stored(registry.resolve(self._session, ref))
        except EspalierError:  # submitting says so, with the nearest names
            return None
        return None

    def _job(self, ref: JobRef, role: str, depth: int) -> Source | None:
        job = find_job(self._session, self._actor, ref.job)
        if not depth:
            return None
        for version in job.outputs:
            if ref.role in (None, version.role) and version.artifact.kind == role_kind(role):
                return self._stored(version)
        spec = spec_of(job)
        return Made(str(ref), spec, self.inputs(spec, depth - 1))

    def _stored(self, version: Version, deep: bool = True) -> Stored:
        files = {file.path: (file.sha256, file.size) for file in version.files}
        base = self._base(version) if deep and version.artifact.kind == "adapter" else None
        label = registry.label(version)
        return Stored(label, version.artifact.kind, files, version.meta, base)

    def _base(self, version: Version) -> Stored | None:
        """The model that an adapter was trained on, where its lineage tells."""
        parent = self._session.scalar(
            select(Version)
            .join(Lineage, Lineage.parent_id == Version.id)
            .where(Lineage.child_id == version.id, Lineage.role == "model")
        )
        if parent is None:
            return None
        try:
            access.project_for(self._session, self._actor, parent.artifact.project.name)
        except EspalierError:
            return None
        return self._stored(parent, deep=False)


def unlearnt(session: Session, inputs: Mapping[str, Source]) -> list[tuple[str, int]]:
    """Return sha256 and bytes of the models' configs that placement does not know yet."""
    found = [
        source.files["config.json"]
        for source in inputs.values()
        if isinstance(source, Stored) and source.kind == "model" and "config.json" in source.files
    ]
    return [config for config in found if session.get(ModelConfig, config[0]) is None]


class Reading:
    """Turns sources into facts; each blob is read once."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._documents: dict[str, Mapping[str, Any] | None] = {}

    def known(self, inputs: Mapping[str, Source]) -> Known:
        """Return what is known of a job's inputs."""
        models: dict[str, Model] = {}
        adapters: dict[str, Adapter] = {}
        data: dict[str, Data] = {}
        for role, source in inputs.items():
            match plain_role(role):
                case "model" if model := self.model(source):
                    models[role] = model
                case "adapter" if adapter := self.adapter(source):
                    adapters[role] = adapter
                case "data" | "calibration" if isinstance(source, Stored):
                    if found := _data(source):
                        data[role] = found
        return Known(models, adapters, data)

    def model(self, source: Source | None) -> Model | None:
        if isinstance(source, Made):
            base = self.model(source.inputs.get("model"))
            if base is None:
                return None
            made = memory.made(base.config, source.spec)
            named = frozenset({source.label})
            return replace(base, label=source.label, config=made, identity=named)
        if source is None:
            return None
        config = self._json(source, "config.json", MAX_CONFIG)
        if config is None:
            return None
        weights = {sha for path, (sha, _) in source.files.items() if path.endswith(".safetensors")}
        tokenizer = partial(self._json, source, "tokenizer.json", MAX_TOKENIZER)
        return Model(source.label, config, frozenset(weights), tokenizer)

    def adapter(self, source: Source) -> Adapter | None:
        if isinstance(source, Made):
            return self._coming(source)
        config = self._json(source, "adapter_config.json", MAX_CONFIG)
        if config is None:
            return None
        shapes = self._shapes(source, "adapters.safetensors")
        steps = tuple(
            sorted(int(match[1]) for path in source.files if (match := _CHECKPOINT.fullmatch(path)))
        )
        return adapter_of(source.label, config, shapes, self.model(source.base), steps)

    def _coming(self, source: Made) -> Adapter | None:
        """The adapter that a training will make."""
        spec = source.spec
        if not isinstance(spec, TrainSpec):
            return None
        base = self.model(source.inputs.get("model"))
        keys = spec.lora_parameters.keys
        if keys is None and base and (shape := base.geometry()):
            keys = tuple(linear.name for linear in shape.linears())
        blocks = None
        if base and base.layers:
            count = min(spec.num_layers, base.layers) if spec.num_layers > 0 else base.layers
            blocks = frozenset(range(base.layers - count, base.layers))
        full = spec.fine_tune_type == "full"
        rank = None if full else spec.lora_parameters.rank
        named = None if full or keys is None else frozenset(keys)
        return Adapter(source.label, spec.fine_tune_type, rank, named, blocks, base)

    # --- The store --------------------------------------------------------------------

    def _json(self, source: Stored, path: str, most: int) -> Mapping[str, Any] | None:
        """Return a JSON object of the store; None when there is none, or it cannot be read."""
        sha256, size = source.files.get(path, ("", 0))
        if not sha256 or size > most:
            return None
        if sha256 not in self._documents:
            self._documents[sha256] = self._object(sha256)
        return self._documents[sha256]

    def _object(self, sha256: str) -> Mapping[str, Any] | None:
        try:
            document = json.loads(b"".join(self._blobs.open(sha256)))
        except (EspalierError, OSError, ValueError, RecursionError):
            return None
        return document if isinstance(document, dict) else None

    def _shapes(self, source: Stored, path: str) -> dict[str, tuple[int, ...]]:
        """Return name → shape of a safetensors file's tensors; empty where it cannot be read."""
        sha256, size = source.files.get(path, ("", 0))
        if not sha256:
            return {}
        try:
            header = previews.safetensors(partial(self._range, sha256), size)
        except (previews.Odd, EspalierError, OSError):
            return {}
        return {tensor.name: tensor.shape for tensor in header.tensors}

    def _range(self, sha256: str, start: int, length: int) -> bytes:
        return b"".join(self._blobs.open(sha256, start, length))


def _data(source: Stored) -> Data | None:
    """What was found out about a data set when it was published (scheduler.contents.datasets)."""
    report = source.meta.get("dataset")
    if not isinstance(report, Mapping):
        return None
    rows = {name: int(split["rows"]) for name, split in (report.get("splits") or {}).items()}
    features = report.get("features") or {}
    return Data(source.label, rows, report.get("format"), features)
