"""Held-out rows as questions: all before the last answer is the prompt, the answer the reference.

The chat template is applied as mlx-lm applies it to the rows that it trains on (mlx_lm.tuner
.datasets), with the beginning of an answer put behind it.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lm.tuner.datasets import ChatDataset, CompletionsDataset

from espalier.specs import EvalSpec
from worker.engine.report import BadInput

#: Metrics that judge by the reference answer, and by a row's own schema.
_BY_REFERENCE = frozenset({"exact_match", "sql_match", "execution_match", "rouge_l"})


@dataclass(frozen=True, slots=True)
class Question:
    """``line`` of the split's file; ``tokens`` and ``prompt`` are the same, for model and person.

    ``schemas`` maps a metric to the schema that the row brings for it.
    """

    line: int
    tokens: list[int]
    prompt: str
    reference: str
    schemas: Mapping[str, str]


def questions(spec: EvalSpec, dataset: Any) -> list[Question]:
    """Return the questions of a split, `spec.samples` of them drawn by `spec.seed`, in its order.

    ``dataset`` is what `data.open_split` returned. Raises BadInput naming the line that has no
    answer, or that lacks a schema that a metric needs.
    """
    inner = dataset._data
    lines: Sequence[int] = range(len(inner))
    if 0 <= spec.samples < len(inner):
        lines = sorted(random.Random(spec.seed).sample(lines, spec.samples))  # noqa: S311
    make = _conversation if isinstance(inner, ChatDataset | CompletionsDataset) else _text
    return [make(spec, inner, index) for index in lines]


def _conversation(spec: EvalSpec, dataset: Any, index: int) -> Question:
    row = dataset[index]
    messages = _messages(dataset, row)
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        raise BadInput(
            f"{spec.split}.jsonl line {index + 1}: its messages do not end with an answer of the"
            " assistant's, so there is nothing to hold a generated one against.",
            "End every row with the answer, or leave metrics out.",
        )
    more = json.loads(spec.chat_template_config) if spec.chat_template_config else {}
    tools = row.get("tools")
    template = dataset.tokenizer.apply_chat_template
    begun = {"tools": tools, "add_generation_prompt": True, **more}
    tokens = list(template(messages[:-1], return_dict=False, **begun))
    prompt = str(template(messages[:-1], tokenize=False, **begun))
    answer = messages[-1].get("content")
    if not isinstance(answer, str) or not answer:
        # A call of tools: what the template makes of it is what the model learnt to write.
        whole = str(template(messages, tokenize=False, tools=tools, **more))
        answer = whole.removeprefix(prompt).removesuffix(dataset.tokenizer.eos_token or "")
    return _question(spec, row, index, tokens, prompt, answer)


def _messages(dataset: Any, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    if isinstance(dataset, CompletionsDataset):
        return (
            {"role": "user", "content": row[dataset.prompt_key]},
            {"role": "assistant", "content": row[dataset.completion_key]},
        )
    found: Sequence[Mapping[str, Any]] = row[dataset.chat_key]
    return found


def _text(spec: EvalSpec, dataset: Any, index: int) -> Question:
    if spec.answer_after is None:
        raise BadInput(
            f"{spec.split}.jsonl has rows with text: where a prompt ends and its answer begins is"
            " not known.",
            'Set answer_after to what stands before every answer, as "A:", or use rows with prompt'
            " and completion.",
        )
    row = dataset[index]
    text: str = row[dataset.text_key]
    prompt, marker, answer = text.rpartition(spec.answer_after)
    if not marker or not answer.strip():
        missing = "no answer behind" if marker else "no"
        raise BadInput(
            f"{spec.split}.jsonl line {index + 1} has {missing} {spec.answer_after!r}"
            f" (answer_after): {text:.80}",
            "Choose what stands in every row.",
        )
    prompt += marker
    tokens = list(dataset.tokenizer.encode(prompt))
    return _question(spec, row, index, tokens, prompt, answer)


def _question(
    spec: EvalSpec, row: Mapping[str, Any], index: int, tokens: list[int], prompt: str, answer: str
) -> Question:
    if not tokens:
        raise BadInput(f"{spec.split}.jsonl line {index + 1} has an empty prompt.")
    if not answer.strip() and _BY_REFERENCE.intersection(spec.metrics):
        raise BadInput(
            f"{spec.split}.jsonl line {index + 1} has an empty answer:"
            f" {', '.join(m for m in spec.metrics if m in _BY_REFERENCE)} cannot judge by it.",
            "Take the row out, or choose regex or json_schema.",
        )
    schemas = dict(_schemas(spec, row, index))
    return Question(index + 1, tokens, prompt, answer.strip(), schemas)


def _schemas(spec: EvalSpec, row: Mapping[str, Any], index: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for metric, key, fixed in (
        ("json_schema", "json_schema_feature", spec.json_schema),
        ("execution_match", "sql_schema_feature", spec.sql_schema),
    ):
        wanted = {metric, "sql_match"} if metric == "execution_match" else {metric}
        if wanted.isdisjoint(spec.metrics):
            continue
        feature = getattr(spec, key)
        value = row.get(feature) if feature else fixed
        if feature and not value:
            raise BadInput(
                f"{spec.split}.jsonl line {index + 1} has no {feature}, which {key} names: it has"
                f" {', '.join(sorted(row))}.",
                "Name a key that every row has.",
            )
        if value is not None:
            found.append((metric, value if isinstance(value, str) else json.dumps(value)))
    return found
