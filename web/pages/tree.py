"""A lineage drawn as an espalier: roots on the ground, level tiers above them."""

from collections.abc import Collection
from dataclasses import dataclass

from scheduler.lineage import Family
from scheduler.models import Version
from scheduler.registry import label


@dataclass(frozen=True, slots=True)
class Node:
    """One version on the frame."""

    ref: str
    name: str
    number: int
    kind: str
    size: int
    is_current: bool


def tiers(version: Version, family: Family, projects: Collection[str]) -> list[list[Node]]:
    """Return the tiers from the top down; a version stands above everything it was made from.

    ``projects`` are the ids of those whose versions may be shown.
    """
    versions = {version.id: version}
    parents: dict[str, set[str]] = {}
    for relative in family.ancestors:
        versions[relative.version.id] = relative.version
        parents.setdefault(relative.of, set()).add(relative.version.id)
    for relative in family.descendants:
        versions[relative.version.id] = relative.version
        parents.setdefault(relative.version.id, set()).add(relative.of)
    heights: dict[str, int] = {}
    for key in versions:
        _height(key, parents, heights)
    found: dict[int, list[Node]] = {}
    for key, item in versions.items():
        if item.artifact.project_id in projects:
            found.setdefault(heights[key], []).append(_node(item, item is version))
    return [sorted(found[h], key=lambda node: node.ref) for h in sorted(found, reverse=True)]


def _height(key: str, parents: dict[str, set[str]], heights: dict[str, int]) -> int:
    if key not in heights:
        below = (_height(parent, parents, heights) for parent in parents.get(key, ()))
        heights[key] = 1 + max(below, default=-1)
    return heights[key]


def _node(version: Version, is_current: bool) -> Node:
    artifact = version.artifact
    return Node(
        ref=label(version),
        name=f"{artifact.project.name}/{artifact.name}",
        number=version.number,
        kind=artifact.kind,
        size=version.size,
        is_current=is_current,
    )
