"""Rows as tokens: what mlx-lm's data sets make of each, by all cores at once.

mlx-lm encodes a row when it is first drawn. Encoded a thousand at a time, the tokenizer spreads
them over the cores; the tokens are the same.
"""

from typing import Any

from jinja2 import TemplateError
from mlx_lm.tuner.datasets import ChatDataset, CompletionsDataset, TextDataset

from worker.engine.data import Row
from worker.engine.report import BadInput

#: What a chat template raises for messages that it was not made for.
_UNREADABLE = (TemplateError, TypeError, KeyError, IndexError, ValueError, AttributeError)


def encode(name: str, raw: Any, first: int, count: int) -> list[Row]:
    """Return rows ``first`` up to ``first + count`` of mlx-lm's data set as it processes them.

    Raises BadInput naming ``name``'s line for a row that the chat template refuses.
    """
    rows = [raw[first + index] for index in range(count)]
    try:
        return _together(raw, rows)
    except _UNREADABLE:
        return [_alone(name, raw, first + index, row) for index, row in enumerate(rows)]


def _alone(name: str, raw: Any, index: int, row: Any) -> Row:
    try:
        tokens, offset = raw.process(row)
    except _UNREADABLE as error:
        raise BadInput(
            f"{name}.jsonl line {index + 1} cannot be made into tokens: {type(error).__name__}:"
            f" {error!s:.200}.",
            "Conversations have to be as the model's chat template wants them: often user and"
            " assistant in turn, after at most one system message.",
        ) from error
    return tokens, offset


def _together(raw: Any, rows: list[Any]) -> list[Row]:
    if type(raw) is TextDataset:
        found = raw.tokenizer._tokenizer([row[raw.text_key] for row in rows])["input_ids"]
        end = raw.tokenizer.eos_token_id
        return [(ids if ids[-1:] == [end] else [*ids, end], 0) for ids in found]
    plain = type(raw) in (ChatDataset, CompletionsDataset)
    if not plain or raw.tokenizer._chat_template or any(row.get("tools") for row in rows):
        return [raw.process(row) for row in rows]
    talks = [_messages(raw, row) for row in rows]
    tokens = raw.tokenizer.apply_chat_template(talks, tools=None, return_dict=False)
    return list(zip(tokens, _offsets(raw, talks), strict=True))


def _messages(raw: Any, row: Any) -> Any:
    if type(raw) is ChatDataset:
        return row[raw.chat_key]
    return [
        {"role": "user", "content": row[raw.prompt_key]},
        {"role": "assistant", "content": row[raw.completion_key]},
    ]


def _offsets(raw: Any, talks: list[Any]) -> list[int]:
    """Return where each conversation's last message begins, in tokens; 0 without mask_prompt."""
    found = [0] * len(talks)
    if not raw.mask_prompt:
        return found
    for answers in (True, False):
        chosen = [i for i, t in enumerate(talks) if (t[-1].get("role") == "assistant") == answers]
        prompts = [talks[i][:-1] for i in chosen]
        if prompts:
            encoded = raw.tokenizer.apply_chat_template(
                prompts, tools=None, add_generation_prompt=answers, return_dict=False
            )
            for index, tokens in zip(chosen, encoded, strict=True):
                found[index] = len(tokens)
    return found
