"""The inputs and the output of a job by its kind: roles, and the fields that name them."""

from espalier.specs import OUTPUT_KIND, SPECS, Spec, parse, plain_role
from espalier.states import ArtifactKind, Kind
from scheduler.models import Job

#: What an input's role needs the artifact to be.
ROLE_KIND = {
    "model": ArtifactKind.MODEL,
    "data": ArtifactKind.DATASET,
    "adapter": ArtifactKind.ADAPTER,
    "calibration": ArtifactKind.DATASET,
}
#: The field of a role that is called otherwise, by kind; numbered roles are all in one list.
_FIELD = {("train", "adapter"): "resume_adapter_file"}
_LIST = {("train", "data"): "hf_dataset", ("fuse", "adapter"): "adapters"}


def role_kind(role: str) -> ArtifactKind:
    """Return what an input of this role has to be; ``adapter_2`` is an adapter like the first."""
    return ROLE_KIND[plain_role(role)]


def field_of(kind: str, role: str) -> str:
    """Return the spec's field that holds the reference of an input's role."""
    plain = plain_role(role)
    if plain != role:
        return _LIST.get((kind, plain), plain)
    return _FIELD.get((kind, role), role)


def output_kind(spec: Spec) -> str:
    """Return what a job of this spec makes."""
    if spec.kind == "export" and spec.format == "safetensors":
        return "model"
    if spec.kind == "fuse" and spec.output == "adapter":
        return "adapter"
    return OUTPUT_KIND[Kind(spec.kind)]


def spec_of(job: Job) -> Spec:
    """Return a job's spec as it was submitted."""
    return parse(SPECS[Kind(job.kind)], job.spec)
