"""One adapter or several weighted ones: written in three ways, kept in one."""

from typing import Any

import pytest

from espalier.errors import InvalidInput
from espalier.specs import FuseSpec, parse


def spec(**keys: Any) -> FuseSpec:
    return parse(FuseSpec, {"model": "team/base"} | keys)


@pytest.mark.parametrize(
    "given",
    [
        "team/a@v2=0.5, team/b",
        ["team/a@v2=0.5", "team/b=1"],
        [{"adapter": "team/a@v2", "weight": 0.5}, {"adapter": "team/b"}],
    ],
)
def test_several_adapters_have_a_role_and_a_weight_each(given: Any) -> None:
    found = spec(adapters=given)
    assert found.adapters == ("team/a@v2=0.5", "team/b")
    assert found.weighted() == {"adapter": ("team/a@v2", 0.5), "adapter_2": ("team/b", 1.0)}
    assert found.refs() == {"model": "team/base", "adapter": "team/a@v2", "adapter_2": "team/b"}
    assert parse(FuseSpec, found.model_dump(mode="json")) == found


def test_one_adapter_is_as_it_was() -> None:
    found = spec(adapter="team/a", data="team/d")
    assert found.refs() == {"model": "team/base", "adapter": "team/a", "data": "team/d"}
    assert found.weighted() == {"adapter": ("team/a", 1.0)}


def test_references_are_replaced_by_role() -> None:
    found = spec(adapters="step:one=-0.25, step:two").with_refs({"adapter": "job:aaaaaaaaaaaa"})
    assert found.adapters == ("job:aaaaaaaaaaaa=-0.25", "step:two")
    assert spec(adapter="step:one").with_refs({"adapter": "team/a"}).adapter == "team/a"
    assert spec(adapter="team/a").with_refs({"model": "team/b"}).model == "team/b"


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({}, "name one adapter"),
        ({"adapter": "team/a", "adapters": "team/b"}, "name one adapter"),
        ({"adapters": "team/a=much"}, "'much' is no weight: write team/a=0.5"),
        ({"adapters": "team/a=0"}, "the weight 0 of team/a is 0 or not between"),
        ({"adapters": "team/a=nan"}, "not between"),
        ({"adapters": [{"adapter": "team/a", "scale": 2}]}, "an adapter is"),
        ({"adapters": "team/a=1=2"}, "is no weight"),
        ({"adapters": "no reference=1"}, "no reference"),
        ({"adapters": ["team/a"] * 17}, "at most 16"),
        ({"adapter": "team/a", "output": "adapter", "dequantize": True}, "writes a model"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        spec(**keys)
