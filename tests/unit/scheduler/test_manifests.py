"""A version's bytes: the same for the same content, whatever order it came in."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import InvalidInput
from espalier.messages import FileEntry
from espalier.states import ArtifactKind
from scheduler.catalog import manifests

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
files = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 9), min_size=1)


@settings(max_examples=50, deadline=None)
@given(files, st.dictionaries(st.text(), json_values, max_size=4), st.randoms())
def test_order_makes_no_difference(
    sizes: dict[str, int], meta: dict[str, Any], random: Any
) -> None:
    parents = [("data", "team/sql@v1", "a" * 40), ("model", "team/base@v2", "b" * 40)]

    def build() -> bytes:
        paths, keys = list(sizes), list(meta)
        for order in (paths, keys, parents):
            random.shuffle(order)
        return manifests.build(
            "team/tuned",
            ArtifactKind.ADAPTER,
            files={
                path: (
                    FileEntry(path=path, sha256=f"{sizes[path]:064x}", size=sizes[path]),
                    "0" * 40,
                )
                for path in paths
            },
            parents=parents,
            meta={key: meta[key] for key in keys},
            job=None,
        )

    manifest = build()
    assert build() == manifest
    document = json.loads(manifest)
    assert document["meta"] == meta
    assert manifests.canonical(document) == manifest


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", b"bytes", {1: 2, "a": 3}])
def test_what_json_does_not_have_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match="plain JSON"):
        manifests.canonical({"meta": value})


@pytest.mark.parametrize(
    ("paths", "clashing"),
    [
        (["a", "b/c", "b/d"], []),
        (["a", "A"], ["A"]),
        (["\u00e9", "e\u0301"], ["e\u0301"]),
        (["x/y", "x"], ["x/y"]),
        (["X", "x/y/z"], ["x/y/z"]),
        ([], [""]),
    ],
)
def test_names_that_clash_on_a_macs_disk(paths: list[str], clashing: list[str]) -> None:
    assert [path for path, _ in manifests.clashes(paths)] == clashing
