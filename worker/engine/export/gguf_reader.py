"""The independent reader: llama.cpp, in a process of its own, told to read a GGUF file.

``python -m worker.engine.export.gguf_reader`` takes one Reading as JSON on stdin and answers with
one Answer as JSON on stdout; llama.cpp's own talk goes to stderr. It imports no MLX: the two
implementations meet in token ids only.
"""

import os
import secrets
import sys
from typing import Any

import httpx
import xllamacpp
from pydantic import BaseModel


class Prompt(BaseModel):
    """Token ids, and those that MLX continued them with; an end token, if any, is the last."""

    tokens: list[int]
    expected: list[int]


class Reading(BaseModel):
    """``texts`` are tokenized; ``prompts`` are continued greedily; ``ends`` end a text."""

    path: str
    texts: list[str]
    prompts: list[Prompt]
    ends: list[int]


class Mismatch(BaseModel):
    """Where llama.cpp chose another token; None when it ended the text there."""

    prompt: int
    position: int
    token: int | None


class Answer(BaseModel):
    tokenized: list[list[int]]
    mismatches: list[Mismatch]


def _serve(reading: Reading, key: str) -> Any:
    """Load the file on the CPU, with a full-precision cache: the reference way to compute."""
    params = xllamacpp.CommonParams()
    params.model.path = reading.path
    longest = max((len(p.tokens) + len(p.expected) for p in reading.prompts), default=0)
    params.n_ctx = max(256, longest + 8)
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.api_keys = [key]
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # Its threads spin while they wait for each other; on a busy machine fewer are faster.
    params.cpuparams.n_threads = max(1, (os.cpu_count() or 2) // 2)
    return xllamacpp.Server(params)


def read(reading: Reading) -> Answer:
    """Load, tokenize and continue; raises RuntimeError when llama.cpp cannot load the file."""
    key = secrets.token_urlsafe(24)
    server = _serve(reading, key)
    with httpx.Client(
        base_url=server.listening_address,
        headers={"Authorization": f"Bearer {key}"},
        timeout=600,
        trust_env=False,
    ) as client:
        tokenized = [_tokenize(client, text) for text in reading.texts]
        mismatches = [
            found
            for index, prompt in enumerate(reading.prompts)
            for found in _follow(client, index, prompt, frozenset(reading.ends))
        ]
    return Answer(tokenized=tokenized, mismatches=mismatches)


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = client.post(path, json=body)
    if reply.is_error:
        raise RuntimeError(f"llama.cpp answered {path} with {reply.status_code}: {reply.text:.500}")
    document: dict[str, Any] = reply.json()
    return document


def _tokenize(client: httpx.Client, text: str) -> list[int]:
    body = {"content": text, "add_special": False, "parse_special": False}
    return [int(token) for token in _post(client, "/tokenize", body)["tokens"]]


def _follow(
    client: httpx.Client, index: int, prompt: Prompt, ends: frozenset[int]
) -> list[Mismatch]:
    """Continue greedily; where llama.cpp strays, set it back on MLX's path and go on.

    So every position is compared, and no early difference hides the later ones.
    """
    found = []
    at = 0
    while at < len(prompt.expected):
        body = {
            "prompt": prompt.tokens + prompt.expected[:at],
            "n_predict": len(prompt.expected) - at,
            "temperature": 0,
            "return_tokens": True,
            "cache_prompt": False,
        }
        reply = _post(client, "/completion", body)
        chosen = [int(token) for token in reply["tokens"]]
        if reply.get("stop_type") == "eos" and not ends.intersection(chosen[-1:]):
            # It ended by a token it does not tell; any end is as good as MLX's.
            chosen.append(prompt.expected[-1] if prompt.expected[-1] in ends else -1)
        while chosen and at < len(prompt.expected) and chosen[0] == prompt.expected[at]:
            chosen.pop(0)
            at += 1
        if at < len(prompt.expected):
            token = chosen[0] if chosen and chosen[0] >= 0 else None
            found.append(Mismatch(prompt=index, position=at, token=token))
            at += 1
    return found


def main() -> None:
    answer = read(Reading.model_validate_json(sys.stdin.readline()))
    sys.stdout.write(answer.model_dump_json() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
