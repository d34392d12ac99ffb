"""What an evaluation's spec refuses, and the one form that texts and objects come to."""

from typing import Any

import pytest
from pydantic import ValidationError

from espalier.specs import EvalSpec

REFS = {"model": "team/base", "data": "team/wikisql"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metrics": ["bleu"]}, "'exact_match', 'sql_match'"),
        ({"metrics": "regex"}, "give pattern"),
        ({"pattern": "("}, "no regular expression"),
        ({"metrics": "json_schema"}, "give json_schema, or json_schema_feature"),
        ({"json_schema": "{"}, "not JSON"),
        ({"json_schema": "1"}, "not a JSON Schema"),
        ({"json_schema": {"properties": {"a": {"type": 3}}}}, r"\$.properties.a.type"),
        ({"chat_template_config": "[]"}, "not a JSON object"),
        ({"metrics": "exact_match", "samples": 0}, "use -1 for all rows"),
        ({"move_best": True}, "set sweep as well"),
        ({"sweep": True}, "name the adapter"),
        ({"bootstrap": -1}, "greater than or equal to 0"),
    ],
)
def test_what_cannot_work_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EvalSpec.model_validate(REFS | given)


def test_texts_and_objects_come_to_one_form() -> None:
    told = EvalSpec.model_validate(
        REFS
        | {"metrics": "regex, exact_match,regex", "pattern": "a", "json_schema": {"type": "null"}}
    )
    assert told.metrics == ("regex", "exact_match")
    assert told.json_schema == '{"type": "null"}'
    assert EvalSpec.model_validate(told.model_dump(mode="json")) == told
