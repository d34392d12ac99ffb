"""References from outside: what is meant is parsed, what is meant badly is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import InvalidInput
from espalier.refs import (
    RESERVED,
    ArtifactRef,
    HubRef,
    JobRef,
    StepRef,
    check_path,
    check_project,
    parse_artifact,
    parse_ref,
)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("team/wikisql", ArtifactRef("team", "wikisql")),
        ("team/wikisql@v3", ArtifactRef("team", "wikisql", "v3")),
        ("team/wikisql@production", ArtifactRef("team", "wikisql", "production")),
        ("wikisql@2", ArtifactRef("here", "wikisql", "2")),
        ("hf:Qwen/Qwen2.5-0.5B", HubRef("Qwen/Qwen2.5-0.5B", "main")),
        ("hf:gpt2@refs/pr/1", HubRef("gpt2", "refs/pr/1")),
        ("job:0abc", JobRef("0abc")),
        ("job:0abc#adapter", JobRef("0abc", "adapter")),
        ("step:train", StepRef("train")),
    ],
)
def test_each_form(text: str, ref: object) -> None:
    assert parse_ref(text, project="here") == ref


@pytest.mark.parametrize(
    "text",
    ["", "team", "a/b/c", "../etc", "team/..", "team/x@", "team/x\0", " team/x", "team/x y"]
    + ["jobs/x", "hf:a/b/c", "hf:../x", "hf:a/b@../../x", "team/-x", "/x", "team/x@a/b"],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_ref(text)
    assert refusal.value.status == 422
    assert refusal.value.errors


@pytest.mark.parametrize(("text", "version"), [("v12", 12), ("7", 7), ("best", None), ("v0", None)])
def test_version_numbers(text: str, version: int | None) -> None:
    assert parse_artifact(f"team/x@{text}").version == version


@pytest.mark.parametrize("word", sorted(RESERVED))
def test_pages_keep_their_words(word: str) -> None:
    with pytest.raises(InvalidInput, match="pages"):
        check_project(word.capitalize())


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", "C:/x", "a\\b", "a\0b", "a\nb"]
    + ["\ud800", "x" * 513, "a/./b"],
)
def test_unsafe_paths(path: str) -> None:
    with pytest.raises(InvalidInput):
        check_path(path)


@given(st.text(min_size=1, max_size=40))
def test_a_path_that_passes_stays_inside(path: str) -> None:
    try:
        checked = check_path(path)
    except InvalidInput:
        return
    assert checked == path
    assert ".." not in path.split("/")
    assert not path.startswith("/")


@given(st.text(min_size=1, max_size=60))
def test_what_parses_prints_and_parses_again(text: str) -> None:
    try:
        ref = parse_ref(text, project="here")
    except InvalidInput:
        return
    assert parse_ref(str(ref)) == ref
