"""An Ollama Modelfile for a GGUF file: its template, as far as that maps to Go's, and its stops.

A Jinja template is a program; Ollama's are not. Where a model's template only puts words before and
after each message, those words are found by asking it, and the Go template is believed when both
give the same text for several conversations. Any other template is left out, and said so: Ollama
then looks for one in the file itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = dict[str, str]
_ROLES = ("system", "user", "assistant")
#: What the template is asked with; no template has it.
_MARK = "␞content␞"
#: Conversations whose text must be equal.
_CHECKS: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


@dataclass(frozen=True, slots=True)
class Pieces:
    """Words before and after a message of each role, before all, and before an answer."""

    begin: str
    around: dict[str, tuple[str, str]]
    answer: str

    def render(self, roles: tuple[str, ...], contents: list[str]) -> str:
        text = self.begin
        for role, content in zip(roles, contents, strict=True):
            before, after = self.around[role]
            text += before + content + after
        return text + self.answer


def write(directory: Path, tokenizer: Any, name: str) -> str | None:
    """Write ``Modelfile``; return a sentence for people when the template is left out."""
    lines = [f"FROM ./{name}"]
    note = None
    pieces = find_pieces(_render(tokenizer)) if tokenizer.chat_template else None
    if pieces is not None:
        lines.append(f'TEMPLATE """{go_template(pieces)}"""')
    elif tokenizer.chat_template:
        note = (
            "The chat template does not map to Ollama's kind: the Modelfile has none, and Ollama"
            " takes the file's own."
        )
        lines.append(f"# {note}")
    for end in sorted(tokenizer.eos_token_ids):
        text = tokenizer.decode([end])
        if text.strip():
            quoted = text.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'PARAMETER stop "{quoted}"')
    (directory / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return note


def _render(tokenizer: Any) -> Callable[[list[Message], bool], str]:
    begin = tokenizer.bos_token or ""
    adds = len(plain := tokenizer.encode("a")) > 1 and plain[0] == tokenizer.bos_token_id

    def render(messages: list[Message], answer: bool) -> str:
        text = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        )
        # The engine puts this token before every text itself.
        return text.removeprefix(begin) if adds and begin else text

    return render


def find_pieces(render: Callable[[list[Message], bool], str]) -> Pieces | None:
    """Ask a template (messages, whether an answer comes) for its words; None where it is more."""
    try:
        pieces = _ask(render)
        if pieces is None:
            return None
        for roles in _CHECKS:
            contents = [f"say {number}: x" for number in range(len(roles))]
            messages = [
                {"role": role, "content": content}
                for role, content in zip(roles, contents, strict=True)
            ]
            if render(messages, True) != pieces.render(roles, contents):
                return None
    except Exception:  # a template raises whatever its author thought of
        return None
    words = [pieces.begin, pieces.answer, *(w for pair in pieces.around.values() for w in pair)]
    return None if any("{{" in word or '"""' in word for word in words) else pieces


def _ask(render: Callable[[list[Message], bool], str]) -> Pieces | None:
    def talk(*roles: str, answer: bool = False) -> list[str]:
        messages = [{"role": role, "content": _MARK} for role in roles]
        return render(messages, answer).split(_MARK)

    # Between two messages of one kind of pair lie the words behind the first and those before the
    # second; where one begins is found by what stands at the text's ends.
    first, last = talk("user")
    asked = talk("user", answer=True)
    answer = asked[1].removeprefix(last)
    _, middle, end = talk("user", "assistant")
    after_user = last
    before_assistant = middle.removeprefix(after_user)
    _, _, again, _ = talk("user", "assistant", "user")
    system, between, _ = talk("system", "user")
    begin = _common_prefix(first, system)
    before_user = first
    for size in range(len(first) + 1):  # the shortest beginning that explains the second turn
        if again.endswith(first[size:]):
            begin, before_user = first[:size], first[size:]
            break
    after_assistant = again.removesuffix(before_user)
    if not end.startswith(after_assistant) and after_assistant != end:
        return None
    if not (system.startswith(begin) and between.endswith(before_user)):
        return None
    around = {
        "system": (system[len(begin) :], between.removesuffix(before_user)),
        "user": (before_user, after_user),
        "assistant": (before_assistant, after_assistant),
    }
    return Pieces(begin, around, answer)


def _common_prefix(one: str, other: str) -> str:
    size = 0
    while size < min(len(one), len(other)) and one[size] == other[size]:
        size += 1
    return one[:size]


def go_template(pieces: Pieces) -> str:
    """Return the Go template that gives the same text for every conversation of these roles."""
    parts = []
    for number, role in enumerate(_ROLES):
        before, after = pieces.around[role]
        word = "if" if number == 0 else "else if"
        parts.append(f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
    body = "".join(parts)
    return f"{pieces.begin}{{{{ range .Messages }}}}{body}{{{{ end }}}}{{{{ end }}}}{pieces.answer}"
