"""Two versions side by side: what changed from the one to the other."""

from flask import render_template, request

from espalier.errors import EspalierError
from scheduler.contents.compare import Comparison
from scheduler.queries import versions
from scheduler.queries.artifacts import find_artifact
from web.api.compare import compared
from web.auth import actor
from web.pages.blueprint import pages, reading

#: Rows of one table; the rest is counted.
MOST = 300


@pages.get("/<project>/<name>/compare")
def comparison(project: str, name: str) -> tuple[str, int]:
    """Compare ``from`` with ``to``: versions of this artifact, or references of any other."""
    with reading() as db:
        found = find_artifact(db, actor(), project, name)
        listed = [v for v in versions.history(db, actor(), found) if not v["deleted_at"]]
        kind = found.kind
    numbers = [f"v{entry['number']}" for entry in listed]
    before = request.args.get("from", "").strip() or (numbers[1] if len(numbers) > 1 else "")
    after = request.args.get("to", "").strip() or (numbers[0] if numbers else "")
    result: Comparison | None = None
    error: EspalierError | None = None
    if before and after:
        try:
            result = compared(_ref(project, name, before), _ref(project, name, after))
        except EspalierError as caught:
            error = caught
    page = render_template(
        "compare.html", section="Artifacts", project=project, name=name, kind=kind,
        choices=numbers, before=before, after=after, result=result, error=error, most=MOST,
        weights=_weights(result),
    )  # fmt: skip
    return page, error.status if error else 200


def _ref(project: str, name: str, text: str) -> str:
    """Return a whole reference: a selector alone means this artifact."""
    return text if "/" in text else f"{project}/{name}@{text}"


def _weights(result: Comparison | None) -> float:
    """Return the largest relative difference, by which bars are drawn."""
    found = [t.relative for t in result.tensors if t.relative is not None] if result else []
    return max(found, default=0.0)
