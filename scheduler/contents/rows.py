"""One row of a data set: which of mlx-lm's formats it has, and what is wrong with it. Pure."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

Row = dict[str, Any]

#: mlx-lm's settings that name the keys it reads, with their defaults.
FEATURES = {
    "prompt_feature": "prompt",
    "completion_feature": "completion",
    "chat_feature": "messages",
    "text_feature": "text",
}
ROLES = ("system", "developer", "user", "assistant", "tool")
_TYPES = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
_MIXED = "a data set has one format; the rows before are"


class Fault(Exception):
    """What is wrong with a line, and what to do. ``at`` is a column from 1, or a row's key."""

    def __init__(self, at: int | str, message: str) -> None:
        super().__init__(message)
        self.at = at
        self.message = message

    def column(self, line: bytes | None) -> int:
        """Return the column, in characters from 1; a key's own where it stands in the line."""
        if isinstance(self.at, int):
            return self.at
        text = (line or b"").decode("utf-8", "replace")
        return text.find(json.dumps(self.at, ensure_ascii=False)) + 1 or 1


def parse(line: bytes | None, number: int, limit: int) -> Row:
    """Return the line's object. Raises Fault."""
    if line is None:
        raise Fault(limit, f"the line is longer than {limit >> 20} MiB: cut it into rows")
    if number == 1:
        _check_start(line)
    if b"\0" in line:
        raise Fault(line.index(b"\0") + 1, "a NUL byte: save the file as UTF-8 text")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        column = len(line[: error.start].decode()) + 1
        raise Fault(column, "not UTF-8: save the file as UTF-8 text") from None
    if not text.strip():
        raise Fault(1, "an empty line: remove it")
    return _object(text.rstrip("\r\n"), number)


def _check_start(line: bytes) -> None:
    if line.startswith(b"\xef\xbb\xbf"):
        raise Fault(1, "a byte order mark: save the file as UTF-8 without it")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Fault(1, "this is UTF-16: save the file as UTF-8")


def _object(text: str, number: int) -> Row:
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if number == 1 and text.strip() in ("[", "{"):
            raise Fault(1, "one JSON value over many lines: write one object per line") from None
        raise Fault(error.colno, f"not JSON: {error.msg}; write one object per line") from None
    except (ValueError, RecursionError) as error:
        raise Fault(1, f"not JSON that can be read: {error}") from None
    if isinstance(row, list) and number == 1:
        raise Fault(1, "a JSON list: write its objects one per line, without brackets and commas")
    if not isinstance(row, dict):
        raise Fault(1, f"{_TYPES[type(row)]}, not an object: write one object per line")
    surrogate = _SURROGATE.search(text)
    if surrogate and not _encodes(row):
        raise Fault(surrogate.start() + 1, "half of a character (a lone surrogate): mend the text")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _encodes(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- Formats ------------------------------------------------------------------------------


def detect(row: Row, features: Mapping[str, str]) -> str:
    """Return completions, chat or text, as mlx-lm decides it by the first row. Raises Fault."""
    if features["prompt_feature"] in row and features["completion_feature"] in row:
        return "completions"
    if features["chat_feature"] in row:
        return "chat"
    if features["text_feature"] in row:
        return "text"
    raise Fault(
        1,
        f"the row has {_keys(row)}: it needs {features['text_feature']},"
        f" {features['prompt_feature']} and {features['completion_feature']},"
        f" or {features['chat_feature']}",
    )


def _keys(row: Row) -> str:
    return ", ".join(repr(key[:40]) for key in list(row)[:6]) or "no keys"


def required(kind: str, features: Mapping[str, str]) -> list[str]:
    """Return the keys that a row of this format must have."""
    if kind == "completions":
        return [features["prompt_feature"], features["completion_feature"]]
    return [features[f"{kind}_feature"]]


def faults(row: Row, kind: str, features: Mapping[str, str]) -> Iterator[Fault]:
    """Yield what keeps the row from being trained on."""
    keys = required(kind, features)
    absent = [key for key in keys if key not in row]
    if absent:
        yield Fault(
            1, f"{' and '.join(map(repr, absent))} missing; {_MIXED} {kind} ({', '.join(keys)})"
        )
        return
    if kind == "chat":
        yield from _chat_faults(keys[0], row[keys[0]])
    else:
        for key in keys:
            yield from _text_faults(key, row[key], target=key == keys[-1])
    tools = row.get("tools")
    if tools is not None and not _is_list_of_objects(tools):
        yield Fault("tools", "tools must be a list of objects")


def _text_faults(key: str, value: object, *, target: bool) -> Iterator[Fault]:
    if not isinstance(value, str):
        yield Fault(key, f"{key} is {_TYPES[type(value)]}: it must be text")
    elif not value.strip():
        why = "no tokens to learn from" if target else "put a text without a prompt under 'text'"
        yield Fault(key, f"{key} is empty: {why}; fill it, or remove the row")


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _chat_faults(key: str, messages: object) -> Iterator[Fault]:
    if not isinstance(messages, list) or not messages:
        yield Fault(key, f"{key} must be a list of messages with role and content, and not empty")
        return
    for number, message in enumerate(messages):
        problem = _message_problem(message)
        if problem:
            yield Fault(key, f"{key}[{number}] {problem}")
            return
    answers = [message for message in messages if message["role"] == "assistant"]
    last = messages[-1]
    if not any(map(_says, answers)) or (last["role"] == "assistant" and not _says(last)):
        yield Fault(
            key,
            "no assistant message with content at the end: no tokens to learn from; add one, or"
            " remove the row",
        )


def _message_problem(message: object) -> str | None:
    if not isinstance(message, dict):
        return "is not an object with role and content"
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        return f"has the role {role!r:.40}: it must be one of {', '.join(ROLES)}"
    calls = message.get("tool_calls")
    if calls is not None and not _is_list_of_objects(calls):
        return "has tool_calls that are not a list of objects"
    if isinstance(content, str) or (content is None and calls):
        return None
    return f"has content that is {_TYPES[type(content)]}: it must be text"


def _says(message: Row) -> bool:
    return bool((message.get("content") or "").strip() or message.get("tool_calls"))


def text_of(row: Row, kind: str, features: Mapping[str, str]) -> str:
    """Return the row's whole text, without a chat template's own words."""
    if kind != "chat":
        return "\n".join(row[key] for key in required(kind, features))
    said = [message.get("content") or "" for message in row[features["chat_feature"]]]
    calls = [m["tool_calls"] for m in row[features["chat_feature"]] if m.get("tool_calls")]
    return "\n".join([*said, *(json.dumps(call, ensure_ascii=False) for call in calls)])
