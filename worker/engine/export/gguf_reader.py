"""The independent reader: llama.cpp, in a process of its own, told to read a GGUF file.

``python -m worker.engine.export.gguf_reader`` takes one Reading as JSON on stdin and answers with
an Answer as JSON on stdout, and then with the same and the loss: the functions that tell it belong
to no interface of the package, and what breaks there must not take the rest along. llama.cpp's own
talk goes to stderr. It imports no MLX: the two implementations meet in token ids only.
"""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import xllamacpp
from pydantic import BaseModel

from worker.engine.export import llama_api


class Prompt(BaseModel):
    """Token ids, and those that MLX continued them with; an end token, if any, is the last."""

    tokens: list[int]
    expected: list[int]


class Reading(BaseModel):
    """``texts`` are tokenized; ``prompts`` are continued greedily; ``ends`` end a text.

    ``rows`` are read token by token for their log probabilities. ``gpu`` lets the free
    continuation, which is timed, run where llama.cpp would run it by itself.
    """

    path: str
    texts: list[str]
    prompts: list[Prompt]
    ends: list[int]
    rows: list[list[int]] = []
    gpu: bool = True


class Mismatch(BaseModel):
    """Where llama.cpp chose another token; None when it ended the text there."""

    prompt: int
    position: int
    token: int | None


class Spoken(BaseModel):
    """A free continuation of one prompt, and the milliseconds that llama.cpp counted."""

    text: str
    prompt_tokens: int
    prompt_ms: float
    tokens: int
    ms: float


class Answer(BaseModel):
    """``loss`` is the mean over ``tokens`` of the rows, in nats; None where it cannot be told."""

    tokenized: list[list[int]]
    mismatches: list[Mismatch]
    spoken: list[Spoken] = []
    loss: float | None = None
    tokens: int = 0
    untold: str = ""


def read(reading: Reading) -> Answer:
    """Load, tokenize and continue; raises RuntimeError when llama.cpp cannot load the file."""
    with _serving(reading, exact=True) as client:
        tokenized = [client.tokenize(text) for text in reading.texts]
        mismatches = [
            found
            for index, prompt in enumerate(reading.prompts)
            for found in _follow(client, index, prompt, frozenset(reading.ends))
        ]
    with _serving(reading, exact=False) as client:
        if reading.prompts:
            client.complete(reading.prompts[0].tokens, 1)  # what is done once is not timed
        spoken = [client.speak(prompt) for prompt in reading.prompts]
    return Answer(
        tokenized=tokenized,
        mismatches=mismatches,
        spoken=spoken,
        untold="The process that reads it ended." if reading.rows else "",
    )


def with_loss(reading: Reading, answer: Answer) -> Answer:
    """Return the answer with the loss over the reading's rows, or why there is none."""
    try:
        loss, tokens = _loss(reading)
    except (llama_api.Missing, RuntimeError) as error:
        return answer.model_copy(update={"untold": str(error)})
    return answer.model_copy(update={"loss": loss, "tokens": tokens, "untold": ""})


def _threads() -> int:
    # Its threads spin while they wait for each other; on a busy machine fewer are faster.
    return max(1, (os.cpu_count() or 2) // 2)


def _loss(reading: Reading) -> tuple[float | None, int]:
    if not reading.rows:
        return None, 0
    longest = max(map(len, reading.rows))
    with llama_api.opened(Path(reading.path), longest, _threads()) as context:
        losses = [context.losses(row) for row in reading.rows]
    count = sum(len(loss) for loss in losses)
    return (float(sum(loss.sum() for loss in losses)) / count if count else None), count


@contextmanager
def _serving(reading: Reading, exact: bool) -> Iterator["_Client"]:
    """Load the file; ``exact``: on the CPU, with a full-precision cache, the reference way."""
    params = xllamacpp.CommonParams()
    params.model.path = reading.path
    longest = max((len(p.tokens) + len(p.expected) for p in reading.prompts), default=0)
    params.n_ctx = max(256, longest + 8)
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = _threads()
    if exact or not reading.gpu:
        params.n_gpu_layers = 0
    if exact:
        params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    key = secrets.token_urlsafe(24)
    params.api_keys = [key]
    server = xllamacpp.Server(params)
    with httpx.Client(
        base_url=server.listening_address,
        headers={"Authorization": f"Bearer {key}"},
        timeout=600,
        trust_env=False,
    ) as http:
        yield _Client(http)
    del server


@dataclass(frozen=True, slots=True)
class _Client:
    """llama.cpp's server API, as far as it is used here."""

    http: httpx.Client

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = self.http.post(path, json=body)
        if reply.is_error:
            raise RuntimeError(
                f"llama.cpp answered {path} with {reply.status_code}: {reply.text:.500}"
            )
        document: dict[str, Any] = reply.json()
        return document

    def tokenize(self, text: str) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": False}
        return [int(token) for token in self.post("/tokenize", body)["tokens"]]

    def complete(self, tokens: list[int], count: int) -> dict[str, Any]:
        """Continue greedily by up to ``count`` tokens."""
        body = {
            "prompt": tokens,
            "n_predict": count,
            "temperature": 0,
            "return_tokens": True,
            "cache_prompt": False,
        }
        return self.post("/completion", body)

    def speak(self, prompt: Prompt) -> Spoken:
        reply = self.complete(prompt.tokens, max(1, len(prompt.expected)))
        timings = reply["timings"]
        return Spoken(
            text=reply["content"],
            prompt_tokens=timings["prompt_n"],
            prompt_ms=timings["prompt_ms"],
            tokens=timings["predicted_n"],
            ms=timings["predicted_ms"],
        )


def _follow(client: _Client, index: int, prompt: Prompt, ends: frozenset[int]) -> list[Mismatch]:
    """Continue greedily; where llama.cpp strays, set it back on MLX's path and go on.

    So every position is compared, and no early difference hides the later ones.
    """
    found = []
    at = 0
    while at < len(prompt.expected):
        reply = client.complete(prompt.tokens + prompt.expected[:at], len(prompt.expected) - at)
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
    reading = Reading.model_validate_json(sys.stdin.readline())
    answer = read(reading)
    _say(answer)
    _say(with_loss(reading, answer))


def _say(answer: Answer) -> None:
    sys.stdout.write(answer.model_dump_json() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
