"""A lineage as it is drawn: who stands where, what is joined, what is left out."""

from collections.abc import Sequence
from typing import Any

import pytest

from scheduler.catalog.lineage import Family, Maker, Relative
from scheduler.models import Artifact, Project, Version
from web.pages.tree import MOST, Picture, picture

TEAM, FOREIGN = Project(id="t", name="team"), Project(id="f", name="theirs")


def version(name: str, project: Project = TEAM, **columns: Any) -> Version:
    artifact = Artifact(name=name, kind="model", project=project, project_id=project.id)
    columns.setdefault("meta", {})
    return Version(id=name, number=1, size=1, commit="c" * 40, artifact=artifact, **columns)


def maker(kind: str) -> Maker:
    return Maker(f"job-{kind}", f"team/{kind}", kind, 2, "studio-1", "Apple M3 Ultra", "macOS 26.1",
                 {"mlx": "0.30.4"})  # fmt: skip


def drawn(
    current: Version,
    ancestors: Sequence[Relative] = (),
    descendants: Sequence[Relative] = (),
    makers: dict[str, Maker] | None = None,
) -> Picture:
    family = Family(tuple(ancestors), tuple(descendants))
    return picture(current, family, makers or {}, {"t"})


def heights(found: Picture) -> list[str]:
    """Return the boxes' names from the top down."""
    return [node.name for node in sorted(found.nodes, key=lambda n: (n.y, n.name))]


def test_a_version_stands_above_everything_it_was_made_from() -> None:
    base, adapter, fused = (version(name) for name in ("base", "adapter", "fused"))
    found = drawn(
        adapter,
        [Relative(base, "model", "adapter", 1)],
        [Relative(fused, "adapter", "adapter", 1), Relative(fused, "model", "base", 1)],
        {"adapter": maker("train"), "fused": maker("fuse")},
    )
    assert heights(found) == ["fused", "fuse · studio-1", "adapter", "train · studio-1", "base"]
    assert [node.name for node in found.nodes if node.is_current] == ["adapter"]
    # base → train → adapter → fuse → fused, and from the base past the adapter to fuse: with the
    # two bends of that long way nine pieces, and no piece ends in the air.
    assert len(found.paths) == 9
    assert found.left_out == 0


def test_the_list_tells_who_made_it_on_what_and_from_what() -> None:
    base, adapter = version("base"), version("adapter")
    found = drawn(
        adapter, [Relative(base, "model", "adapter", 1)], makers={"adapter": maker("train")}
    )
    first = found.lines[0]
    assert (first.node.name, first.parents) == ("team/adapter@v1", (("model", "team/base@v1"),))
    assert first.maker
    assert first.maker.sentence() == (
        "attempt 2 on studio-1: Apple M3 Ultra, macOS 26.1, mlx 0.30.4"
    )
    job = next(node for node in found.nodes if node.what == "job")
    assert "Apple M3 Ultra" in job.title


def test_versions_of_foreign_projects_are_not_in_it() -> None:
    adapter, secret = version("adapter"), version("secret", FOREIGN)
    found = drawn(adapter, [Relative(secret, "data", "adapter", 1)])
    assert heights(found) == ["adapter"]
    assert "secret" not in repr(found.lines)


def test_a_base_of_another_hub_is_a_root() -> None:
    told = [{"role": "model", "repo": "Qwen/Qwen2.5-0.5B", "revision": "7ae557604adf67be"}]
    adapter = version("adapter", meta={"hub": told})
    found = drawn(adapter, makers={"adapter": maker("train")})
    assert heights(found)[-1] == "hf:Qwen/Qwen2.5-0.5B@7ae557604adf"


def test_boxes_never_overlap_and_stay_in_the_picture() -> None:
    base = version("base")
    many = [version(f"child-{i:02}") for i in range(40)]
    found = drawn(base, descendants=[Relative(child, "model", "base", 1) for child in many])
    assert len(found.nodes) == MOST + 1
    assert found.left_out == 40 - MOST
    assert len(found.lines) == 41
    for i, node in enumerate(found.nodes):
        assert node.x >= 0
        assert node.x + node.width <= found.width
        for other in found.nodes[i + 1 :]:
            apart = node.x + node.width <= other.x or other.x + other.width <= node.x
            assert apart or node.y != other.y


@pytest.mark.parametrize("told", [None, 5, [5], [{"repo": 7}], "x", {"repo": "a/b"}])
def test_meta_that_says_nonsense_is_no_fault(told: object) -> None:
    assert heights(drawn(version("adapter", meta={"hub": told, "worker": told}))) == ["adapter"]
