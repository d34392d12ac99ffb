"""``/api/v1/compare``: two versions side by side."""

from dataclasses import asdict

from pydantic import Field
from sqlalchemy.orm import Session

from espalier.refs import parse_artifact
from espalier.specs import Frozen
from scheduler.contents.compare import Comparison, compare
from scheduler.models import Version
from scheduler.queries import Document
from web.api.artifacts import find_version
from web.api.models import Answer
from web.auth import actor
from web.routes import Routes
from web.services import services


class CompareQuery(Frozen):
    """Two references; without a selector the newest version is meant."""

    before: str = Field(alias="from", max_length=300, description="project/name@v1")
    after: str = Field(alias="to", max_length=300, description="project/name@v2")


class FileChangeAnswer(Answer):
    path: str
    change: str
    before: int | None
    after: int | None


class KeyChangeAnswer(Answer):
    """``before`` and ``after`` are JSON texts, null where the key is absent."""

    file: str
    key: str
    before: str | None
    after: str | None


class TensorChangeAnswer(Answer):
    """``l2`` and ``max_abs`` of the difference, ``relative`` to the norm before."""

    name: str
    change: str
    before: str | None
    after: str | None
    l2: float | None
    relative: float | None
    max_abs: float | None
    differing: float | None


class MetricChangeAnswer(Answer):
    name: str
    before: float | None
    after: float | None


class ComparisonAnswer(Answer):
    """``card`` is a unified diff; ``remarks`` say what was not compared, and why."""

    before: str
    after: str
    files: list[FileChangeAnswer]
    files_same: int
    config: list[KeyChangeAnswer]
    tensors: list[TensorChangeAnswer]
    tensors_same: int
    metrics: list[MetricChangeAnswer]
    card: str | None
    remarks: list[str]


def add(routes: Routes) -> None:
    """Add the route of comparisons."""

    @routes.route("GET", "/compare", answer=ComparisonAnswer)
    def compare_versions(query: CompareQuery) -> Document:
        """Compare two versions: files, configs, tensors by name, metrics, card."""
        return asdict(compared(query.before, query.after))


def compared(before: str, after: str) -> Comparison:
    """Compare what two references name. Raises NotFound, also for what the actor may not see."""
    with services().database.reading() as session:
        ids = [_version(session, ref).id for ref in (before, after)]
    return compare(services().database, services().blobs, actor(), *ids)


def _version(session: Session, ref: str) -> Version:
    found = parse_artifact(ref)
    return find_version(session, found.project, found.name, found.selector or "latest")
