"""Small decisions of the engine: overfitting, pre-tokenizers, out of memory, limits by bits."""

from pathlib import Path
from typing import Any

import pytest

from espalier.errors import InvalidInput
from espalier.states import Reason
from worker.engine.__main__ import _fault
from worker.engine.eval.sweep import overfit_step
from worker.engine.export.gguf_tokenizer import find_pre
from worker.engine.report import BadInput


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ({100: 3.0, 200: 2.0, 300: 1.0}, None),
        ({100: 3.0, 200: 1.0, 300: 2.0}, 200),
        ({100: 1.0, 200: 2.0, 300: 3.0}, 100),
        ({100: 2.0, 200: 3.0, 300: 1.0, 400: 1.5, 500: 1.6}, 300),
        ({100: 1.0, 200: 1.0}, None),
        ({100: 1.0}, None),
        ({}, None),
    ],
)
def test_the_overfitting_point_is_where_loss_only_rises_after(
    losses: dict[int, float], step: int | None
) -> None:
    assert overfit_step(losses) == step


_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(regex: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES]}


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (_BYTES | {"use_regex": True}, "gpt-2"),
        (split_by(_LLAMA3), "llama-bpe"),
        (split_by(_LLAMA3.replace("{1,3}", "")), "qwen2"),
        (split_by(_TEKKEN), "tekken"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    _BYTES | {"use_regex": True},
                ],
            },
            "smollm",
        ),
    ],
)
def test_a_known_pre_tokenizer_has_llama_cpps_name(
    pre_tokenizer: dict[str, Any], name: str
) -> None:
    assert find_pre({"pre_tokenizer": pre_tokenizer}) == name


@pytest.mark.parametrize(
    "pre_tokenizer",
    [None, split_by(r"\w+"), _BYTES, _BYTES | {"use_regex": True, "add_prefix_space": True}],
)
def test_an_unknown_pre_tokenizer_is_refused(pre_tokenizer: dict[str, Any] | None) -> None:
    with pytest.raises(InvalidInput, match="not one that GGUF has a known name for"):
        find_pre({"pre_tokenizer": pre_tokenizer})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("[metal::malloc] Attempting to allocate 9 GB"), Reason.OUT_OF_MEMORY),
        (
            RuntimeError(
                "[METAL] Command buffer execution failed: Insufficient Memory"
                " (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
            ),
            Reason.OUT_OF_MEMORY,
        ),
        (MemoryError(), Reason.OUT_OF_MEMORY),
        (
            RuntimeError("[METAL] Command buffer execution failed: Internal Error (0000000e)"),
            Reason.METAL_ABORT,
        ),
        (RuntimeError("[write] Unable to write 12583009 bytes to file."), Reason.DISK_FULL),
        (OSError(28, "No space left on device", "adapters.safetensors"), Reason.DISK_FULL),
        (InvalidInput("a.py is refused"), Reason.BAD_INPUT),
        (BadInput("no rows"), Reason.BAD_INPUT),
        (ZeroDivisionError("division by zero"), Reason.CODE_ERROR),
    ],
)
def test_every_failure_has_a_code_and_a_sentence(error: Exception, code: Reason) -> None:
    fault = _fault(error, {})
    assert fault.code is code
    assert fault.message


def test_an_input_that_vanished_meanwhile_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    error = FileNotFoundError(2, "No such file or directory", "model-00002.safetensors")
    assert _fault(error, {"model": str(tmp_path)}).code is Reason.CODE_ERROR
    fault = _fault(error, {"data": str(tmp_path), "model": str(tmp_path / "gone")})
    assert fault.code is Reason.INPUT_LOST
    assert "The job's model vanished" in fault.message
