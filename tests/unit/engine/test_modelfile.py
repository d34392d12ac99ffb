"""A chat template as Ollama's, where it maps; the pieces are found by asking the template."""

from pathlib import Path
from typing import Any

import jinja2
import pytest

from worker.engine.export import modelfile

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
BEGUN = "{{ 'BEGIN ' }}" + CHATML
#: As Mistral's and Llama 2's: the answer ends, and nothing begins it.
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}"
    "{% else %}{{ '<<SYS>>' + m['content'] + '<</SYS>>' }}{% endif %}{% endfor %}"
)
#: As Qwen's: a system message that nobody gave.
OWN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
#: As Gemma's: no system message, and another name for who answers.
NO_SYSTEM = (
    "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise() }}{% endif %}"
    "{{ '<start>' + (m['role'] if m['role'] == 'user' else 'model') + '\n' + m['content']"
    " + '<end>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)
#: As those of models that think: what was thought in earlier turns is cut.
CUTS = CHATML.replace("m['content'] +", "m['content'].split('x')[0] +")


def _ask(template: str) -> Any:
    compiled = jinja2.Environment().from_string(template)
    return lambda messages, answer: compiled.render(messages=messages, add_generation_prompt=answer)


@pytest.mark.parametrize("template", [CHATML, LLAMA3, BEGUN, INST, OWN_SYSTEM, NO_SYSTEM])
def test_words_around_messages_are_found(template: str) -> None:
    ask = _ask(template)
    pieces = modelfile.find_pieces(ask)
    assert pieces
    said = {"system": "Be brief.", "user": "How many?", "assistant": "Three."}
    talk: tuple[str, ...] = ("user", "assistant", "user")
    for roles in (talk, ("system", *talk)):
        if template == NO_SYSTEM and "system" in roles:
            assert "system" not in pieces.around
            continue
        contents = [said[role] for role in roles]
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        assert pieces.render(roles, contents) == ask(messages, True)


#: Words that Go would read as its own.
BRACES = "{% for m in messages %}{{ '{{ .x }}' + m['content'] }}{% endfor %}"


@pytest.mark.parametrize("template", [CUTS, BRACES])
def test_a_template_that_is_more_is_left_out(template: str) -> None:
    assert modelfile.find_pieces(_ask(template)) is None


def test_the_go_template_has_the_words() -> None:
    pieces = modelfile.find_pieces(_ask(LLAMA3))
    assert pieces
    told = modelfile.go_template(pieces)
    assert told.startswith('{{ range .Messages }}{{ if eq .Role "system" }}<|start_header_id|>')
    assert told.endswith("{{ end }}{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert told.count("{{ .Content }}<|eot_id|>") == 3


def test_a_system_message_that_nobody_gave_is_the_templates() -> None:
    pieces = modelfile.find_pieces(_ask(OWN_SYSTEM))
    assert pieces
    assert "{{ if not .System }}You help.<|im_end|>\n{{ end }}" in modelfile.go_template(pieces)


class _Tokenizer:
    """What a Modelfile asks of a tokenizer."""

    bos_token, bos_token_id, chat_template = "<s>", 1, "set"
    eos_token_ids = frozenset({2})

    def encode(self, text: str) -> list[int]:
        return [1, 5]

    def decode(self, tokens: list[int]) -> str:
        return '</"s">'

    def apply_chat_template(
        self, messages: Any, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        return "<s>" + str(_ask(CHATML)(messages, add_generation_prompt))


def test_what_the_engine_puts_first_is_not_put_twice(tmp_path: Path) -> None:
    assert modelfile.write(tmp_path, _Tokenizer(), "model-q8_0.gguf") is None
    said = (tmp_path / "Modelfile").read_text()
    assert said.startswith('FROM ./model-q8_0.gguf\nTEMPLATE """{{ range .Messages }}')
    assert "<s>" not in said
    assert said.endswith('PARAMETER stop "</\\"s\\">"\n')
