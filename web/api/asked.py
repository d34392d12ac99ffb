"""The JSON of ``/api/v1`` beyond the specs: what is asked."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from espalier.messages import FileEntry
from espalier.reftypes import NameText
from espalier.specs import Frozen
from espalier.states import ArtifactKind, JobState, Kind

Search = Annotated[str, Field(max_length=200)]


def _split(value: Any) -> Any:
    """``a,b`` and repeated parameters both name several."""
    values = value if isinstance(value, list) else [value]
    return [part for text in values for part in str(text).split(",") if part]


class JobsQuery(Frozen):
    state: Annotated[tuple[JobState, ...], BeforeValidator(_split)] = Field(
        (), description="several: a,b"
    )
    kind: Annotated[tuple[Kind, ...], BeforeValidator(_split)] = Field(
        (), description="several: a,b"
    )
    project: Search | None = None
    pipeline: Search | None = None
    q: Search | None = Field(None, description="found in id, name and note")
    paused: bool | None = Field(None, description="open jobs that are held back, or all others")
    limit: int = Field(50, ge=1, le=1000)
    before: str | None = Field(None, max_length=16, description="the cursor `next` of a page")


class MetricsQuery(Frozen):
    after: int = Field(-1, ge=-1, description="points with a later step only")


class EventsQuery(Frozen):
    after: int = Field(0, ge=0, description="the id of the last event seen")
    limit: int = Field(500, ge=1, le=1000)


class LogQuery(Frozen):
    attempt: str | None = Field(None, max_length=16, description="default: the newest")
    offset: int = Field(0, ge=0, description="bytes")
    limit: int = Field(262_144, ge=1, le=1_048_576, description="bytes")


class ArtifactsQuery(Frozen):
    kind: ArtifactKind | None = None
    project: Search | None = None
    q: Search | None = Field(None, description="found in project/name")
    limit: int = Field(1000, ge=1, le=1000)


class PublishRequest(Frozen):
    """A version of files whose blobs are uploaded; ``parents`` are references it was made from."""

    kind: ArtifactKind
    files: tuple[FileEntry, ...] = Field(min_length=1, max_length=10_000)
    meta: dict[str, Any] = Field(default_factory=dict)
    parents: tuple[Annotated[str, Field(max_length=300)], ...] = Field((), max_length=100)


_EXPECTED = "the commit or version it must point at now; empty: there must be no such alias"


class AliasRequest(Frozen):
    version: str = Field(max_length=96, description="a number, commit, alias or `latest`")
    expected: str | None = Field(None, max_length=40, description=_EXPECTED)


class ExpectedRequest(Frozen):
    expected: str | None = Field(None, max_length=40, description=_EXPECTED)


class GateRequest(Frozen):
    """What a version must have measured before the alias moves to it."""

    data: Annotated[str, Field(max_length=320, description="the data set an eval measures on")]
    metric: Annotated[str, Field(max_length=64)] = "test_loss"
    min_delta: float = Field(0.0, ge=0, description="how much better than the incumbent's")
    proofs: bool = Field(True, description="no proof of the version or its eval may have failed")


class VerdictQuery(Frozen):
    version: str = Field(max_length=96, description="a number, commit, alias or `latest`")


class DrainRequest(Frozen):
    draining: bool = True


class ProjectRequest(Frozen):
    """What is named is changed; a null takes a limit away."""

    preemptible: bool = Field(False, description="its running jobs may be paused for urgent ones")
    quota_bytes: int | None = Field(None, description="of all its versions' files; admins only")
    ttl_days: int | None = Field(None, description="versions that nothing names go after this")


class RoomRequest(Frozen):
    """Blobs that somebody is about to upload."""

    files: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], Annotated[int, Field(ge=0)]] = (
        Field(max_length=10_000, description="sha256 → bytes")
    )


class WebhookRequest(Frozen):
    url: str = Field(max_length=2000, description="http:// or https://")
    events: tuple[Annotated[str, Field(max_length=48)], ...] = Field(
        (), max_length=20, description="default: all"
    )


class DeliveriesQuery(Frozen):
    limit: int = Field(50, ge=1, le=500)


class JoinRequest(Frozen):
    name: NameText
