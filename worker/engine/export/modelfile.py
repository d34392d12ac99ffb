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
#: A chat template: messages, and whether an answer is to follow → text.
Render = Callable[[list[Message], bool], str]
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
    """Words before and after a message of each role, before all, and before an answer.

    ``default`` stands where nobody gave a system message; a template may know no such role.
    """

    begin: str
    default: str
    around: dict[str, tuple[str, str]]
    answer: str

    def render(self, roles: tuple[str, ...], contents: list[str]) -> str:
        text = self.begin + ("" if "system" in roles else self.default)
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


def _render(tokenizer: Any) -> Render:
    begin = tokenizer.bos_token or ""
    adds = len(plain := tokenizer.encode("a")) > 1 and plain[0] == tokenizer.bos_token_id

    def render(messages: list[Message], answer: bool) -> str:
        text = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        )
        # The engine puts this token before every text itself.
        return text.removeprefix(begin) if adds and begin else text

    return render


def find_pieces(render: Render) -> Pieces | None:
    """Ask a template (messages, whether an answer comes) for its words; None where it is more."""
    try:
        pieces = _ask(render, ("system",)) or _ask(render, ())
        same = pieces is not None and all(
            _is_same(render, pieces, roles)
            for roles in _CHECKS
            if "system" in pieces.around or "system" not in roles
        )
    except Exception:  # a template raises whatever its author thought of
        return None
    if pieces is None or not same:
        return None
    words = [pieces.begin, pieces.default, pieces.answer]
    words += [word for pair in pieces.around.values() for word in pair]
    return None if any("{{" in word or '"""' in word for word in words) else pieces


def _is_same(render: Render, pieces: Pieces, roles: tuple[str, ...]) -> bool:
    contents = [f"say {number}: x" for number in range(len(roles))]
    return render(_messages(roles, contents), True) == pieces.render(roles, contents)


def _messages(roles: tuple[str, ...], contents: list[str]) -> list[Message]:
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]


def _ask(render: Render, system: tuple[str, ...]) -> Pieces | None:
    """Cut what a template says around marked messages into its words.

    Between two messages lie the words behind the first and those before the second; where the
    one ends is seen where a text ends or begins. ``system`` is the role, or nothing.
    """

    def talk(*roles: str, answer: bool = False) -> list[str]:
        return render(_messages(roles, [_MARK] * len(roles)), answer).split(_MARK)

    try:
        *_, before_second, _ = talk(*system, "user", "assistant", "user")
    except Exception:  # some know no system message, and raise
        return None
    first, after_user = talk("user")
    after_assistant = talk("user", "assistant")[-1]
    before_user = _suffix(before_second.removeprefix(after_assistant), first)
    opening = first.removesuffix(before_user)
    around = {
        "user": (before_user, after_user),
        "assistant": (
            talk("user", "assistant")[1].removeprefix(after_user),
            before_second.removesuffix(before_user),
        ),
    }
    begin, default = opening, ""
    if system:
        led, between, _ = talk("system", "user")
        begin = _suffix(opening[::-1], led[::-1])[::-1]
        default = opening.removeprefix(begin)
        around["system"] = (led.removeprefix(begin), between.removesuffix(before_user))
    return Pieces(begin, default, around, talk("user", answer=True)[1].removeprefix(after_user))


def _suffix(one: str, other: str) -> str:
    """The longest end that both have."""
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    return one[len(one) - size :]


def go_template(pieces: Pieces) -> str:
    """Return the Go template that gives the same text for every conversation of these roles."""
    default = f"{{{{ if not .System }}}}{pieces.default}{{{{ end }}}}" if pieces.default else ""
    parts: list[str] = []
    for role in (role for role in _ROLES if role in pieces.around):
        before, after = pieces.around[role]
        word = "else if" if parts else "if"
        parts.append(f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
    loop = f"{{{{ range .Messages }}}}{''.join(parts)}{{{{ end }}}}{{{{ end }}}}"
    return f"{pieces.begin}{default}{loop}{pieces.answer}"
