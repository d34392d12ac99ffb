"""The version that lists show of an artifact."""

from sqlalchemy import Exists, ScalarSelect, exists, func, select

from scheduler.catalog.registry import MAIN
from scheduler.models import Artifact, Version


def main_head() -> ScalarSelect[int]:
    """Return the number of main's head (registry.head), as part of a query over Artifact."""
    return (
        select(func.max(Version.number))
        .where(
            Version.artifact_id == Artifact.id,
            Version.branch == MAIN,
            Version.deleted_at.is_(None),
        )
        .correlate(Artifact)
        .scalar_subquery()
    )


def has_main() -> Exists:
    """Return whether main has a head, as part of a query over Artifact."""
    return (
        exists()
        .where(
            Version.artifact_id == Artifact.id,
            Version.branch == MAIN,
            Version.deleted_at.is_(None),
        )
        .correlate(Artifact)
    )
