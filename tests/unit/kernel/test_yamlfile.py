"""YAML as people write it."""

from pathlib import Path

import pytest

from espalier.errors import InvalidInput
from espalier.yamlfile import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-2e+3", -2000.0),
        ("1.5e-4", 1.5e-4),
        (".5", 0.5),
        ("3", 3),
        ("1_000", 1000),
        ("'1e-5'", "1e-5"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("true", True),
    ],
)
def test_numbers_are_read_as_mlx_lm_reads_them(text: str, value: object) -> None:
    found = parse_yaml(f"x: {text}")["x"]
    assert found == value
    assert type(found) is type(value)


def test_an_empty_text_is_an_empty_mapping() -> None:
    assert parse_yaml("# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [1, 2", "line 1, column 9"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is there twice"),
        ("x: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("- 1\n- 2", "must hold `key: value` lines"),
        ("1: one", "must hold `key: value` lines"),
        ("just words", "must hold `key: value` lines"),
        ("a: \x00", "is not YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, why: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_yaml(text, "my.yaml")
    assert "my.yaml" in refused.value.detail
    assert why in refused.value.detail


def test_merged_keys_may_be_overridden() -> None:
    found = parse_yaml("base: &b {rank: 8, scale: 2.0}\nlora_parameters:\n  <<: *b\n  rank: 16\n")
    assert found["lora_parameters"] == {"rank": 16, "scale": 2.0}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"absent\.yaml cannot be read"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(InvalidInput, match=r"latin\.yaml cannot be read"):
        read_yaml(tmp_path / "latin.yaml")
