"""Evaluations: of a model, an adapter, or every checkpoint of a run."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from espalier.reftypes import RefText
from espalier.specs.base import Frozen, MicroBatch, OnOom


def _listed(value: Any) -> Any:
    """A form and a flag have one line: names with commas between them."""
    return (
        [part for part in re.split(r"[,\s]+", value) if part] if isinstance(value, str) else value
    )


def _as_text(value: Any) -> Any:
    """JSON is kept as text: a form and a flag have no other."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else value


#: What a generated answer can be held against. Each gives a sample 1 or 0, ROUGE-L what is between.
Metric = Literal["exact_match", "sql_match", "execution_match", "regex", "json_schema", "rouge_l"]
Metrics = Annotated[tuple[Metric, ...], BeforeValidator(_listed)]
JsonText = Annotated[str, BeforeValidator(_as_text)]


class EvalSpec(Frozen):
    """Test loss and perplexity, as ``mlx_lm.lora --test``; ``sweep`` tests every checkpoint;

    ``metrics`` has answers generated and judged, the base's beside the adapter's.
    """

    kind: Literal["eval"] = "eval"
    model: RefText
    data: RefText
    adapter: RefText | None = None
    split: Literal["train", "valid", "test"] = "test"
    batch_size: int = Field(4, ge=1, le=4096)
    test_batches: int = Field(500, ge=-1, description="-1 is the whole split")
    max_seq_length: int = Field(2048, ge=8, le=1_048_576, description="tokens")
    mask_prompt: bool = False
    seed: int = Field(0, ge=0, lt=2**32)
    sweep: bool = Field(False, description="test every checkpoint of the adapter")
    move_best: bool = Field(
        False,
        description="publish the sweep's best checkpoint as the adapter's next version, and point"
        " its alias best at it",
    )
    compare_base: bool = Field(True, description="test the base without its adapter as well")
    bootstrap: int = Field(
        1000, ge=0, le=100_000, description="resamples behind each 95 % interval; 0 is none"
    )
    metrics: Metrics = Field(
        (),
        description="generate answers and judge them: exact_match, sql_match, execution_match,"
        " regex, json_schema, rouge_l",
    )
    samples: int = Field(
        200, ge=-1, le=100_000, description="rows that answers are generated for; -1 is all"
    )
    max_tokens: int = Field(100, ge=1, le=32_768, description="tokens of an answer at most")
    temp: float = Field(0.0, ge=0.0, le=10.0, description="0 takes the likeliest token")
    top_p: float = Field(1.0, ge=0.0, le=1.0)
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    top_k: int = Field(0, ge=0)
    chat_template_config: JsonText | None = Field(
        None, description='JSON for the chat template, as {"enable_thinking": false}'
    )
    answer_after: str | None = Field(
        None, min_length=1, description="rows with text: the answer begins after the last of these"
    )
    stop: str | None = Field(None, min_length=1, description="an answer ends before this")
    normalize_whitespace: bool = Field(
        True, description="exact_match takes every run of white space for one space"
    )
    ignore_case: bool = Field(False, description="exact_match and regex take A for a")
    pattern: str | None = Field(
        None, max_length=2000, description="regex: what must be found in an answer (Python's re)"
    )
    json_schema: JsonText | None = Field(
        None, max_length=100_000, description="json_schema: what an answer must validate against"
    )
    json_schema_feature: str | None = Field(
        None, description="key of the row that holds its JSON Schema instead"
    )
    sql_schema: str | None = Field(
        None, max_length=100_000, description="execution_match: CREATE TABLE and INSERT statements"
    )
    sql_schema_feature: str | None = Field(
        None, description="key of the row that holds its schema instead"
    )
    prompt_feature: str | None = None
    completion_feature: str | None = None
    text_feature: str | None = None
    chat_feature: str | None = None
    micro_batch_size: MicroBatch = None
    on_oom: OnOom = "adapt"

    @model_validator(mode="after")
    def _sweep_needs_adapter(self) -> "EvalSpec":
        if self.sweep and not self.adapter:
            raise ValueError("sweep tests an adapter's checkpoints: name the adapter")
        if self.move_best and not self.sweep:
            raise ValueError("move_best takes the best of a sweep: set sweep as well")
        return self

    @field_validator("metrics")
    @classmethod
    def _once(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        return tuple(dict.fromkeys(metrics))

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"it is no regular expression of Python's: {error}") from error
        return pattern

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, text: str | None) -> str | None:
        if text is not None:
            check_schema(text)
        return text

    @field_validator("chat_template_config")
    @classmethod
    def _is_object(cls, text: str | None) -> str | None:
        if text is not None and not isinstance(_json(text), dict):
            raise ValueError("it is not a JSON object")
        return text

    @model_validator(mode="after")
    def _metrics_have_what_they_need(self) -> "EvalSpec":
        if "regex" in self.metrics and self.pattern is None:
            raise ValueError("the metric regex searches for a pattern: give pattern")
        if "json_schema" in self.metrics and not (self.json_schema or self.json_schema_feature):
            raise ValueError(
                "the metric json_schema validates answers: give json_schema, or json_schema_feature"
                " for one a row"
            )
        if self.samples == 0 and self.metrics:
            raise ValueError("samples is 0: no answer would be generated; use -1 for all rows")
        return self

    def refs(self) -> dict[str, str]:
        found = {"model": self.model, "data": self.data, "adapter": self.adapter}
        return {role: ref for role, ref in found.items() if ref}


def check_schema(text: str) -> None:
    """Raise ValueError, with where it is wrong, for text that is no JSON Schema.

    A schema that says no draft is read as the newest that the library ``jsonschema`` knows.
    """
    # Half a tenth of a second that no other spec and no command should pay.
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    schema = _json(text)
    try:
        validator_for(schema).check_schema(schema)
    except (AttributeError, TypeError) as error:
        raise ValueError("it is not a JSON Schema: a schema is a JSON object") from error
    except SchemaError as error:
        raise ValueError(f"it is not a JSON Schema: {error.json_path}: {error.message}") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
