"""MLX beside llama.cpp: the same prompts continued and the same text read by both."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import generate_step
from mlx_lm.utils import _get_classes

from worker.engine.export.gguf_arch import Source
from worker.engine.export.gguf_reader import Answer, Prompt
from worker.engine.models import Loaded, weight_bytes
from worker.engine.proofs import sample_rows
from worker.engine.report import Cell, Job

#: Of held-out text: rows that are read, and tokens of one.
_ROWS, _ROW_TOKENS = 32, 512
#: Tokens of a prompt.
_PROMPT_TOKENS = 256
COLUMNS = (
    "engine",
    "format",
    "size_bytes",
    "perplexity",
    "token_match",
    "prompt_tokens_per_second",
    "tokens_per_second",
)
#: Models whose file MLX can take back as it is stored, and the types it computes with.
_BACK = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3"})
_FLOATS = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
_PACKED = ("q8_0", "q4_1", "q4_0")


@dataclass(frozen=True, slots=True)
class Texts:
    """``prompts`` and ``rows`` are tokens; ``source`` says where they are from."""

    prompts: list[list[int]]
    rows: list[list[int]]
    source: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """A greedy continuation by MLX, an end token last if it came to one.

    ``leads`` are, in nats, how far each token was ahead of the next best. Seconds.
    """

    tokens: list[int]
    leads: list[float]
    prompt_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: an engine with a format of weights (GGUF's type)."""

    engine: str
    format: str
    size_bytes: int
    perplexity: float | None
    token_match: float | None
    prompt_tokens_per_second: float | None
    tokens_per_second: float | None

    def cells(self) -> tuple[Cell, ...]:
        return tuple(getattr(self, column) for column in COLUMNS)


def texts_for(job: Job, loaded: Loaded, held: Any | None, source: str, wanted: int) -> Texts:
    """Take prompts and rows from held-out text, else from what the model samples itself.

    A row of a conversation is cut where the answer begins, another one in its middle.
    """
    if held is None:
        seed = job.task.spec.seed
        sampled = [row for s in range(2) for row in sample_rows(loaded, (seed + s) % 2**32)]
        return _texts(sampled, wanted, "text sampled from the model")
    rows = [held[i] for i in range(min(max(wanted, _ROWS), len(held)))]
    return _texts(rows, wanted, source)


def _texts(rows: Sequence[tuple[list[int], int]], wanted: int, source: str) -> Texts:
    prompts = []
    for tokens, offset in rows[:wanted]:
        end = offset if 0 < offset < len(tokens) else max(1, len(tokens) // 2)
        prompts.append(list(tokens[:end][-_PROMPT_TOKENS:]))
    return Texts(prompts, [list(tokens[:_ROW_TOKENS]) for tokens, _ in rows[:_ROWS]], source)


def speak(model: Any, tokens: list[int], count: int, ends: Iterable[int]) -> Spoken:
    """Continue greedily by MLX."""
    last = frozenset(ends)
    chosen: list[int] = []
    leads: list[float] = []
    began = first = time.perf_counter()
    for token, log_probs in generate_step(mx.array(tokens), model, max_tokens=count):
        if not chosen:
            first = time.perf_counter()
        best = mx.sort(log_probs.astype(mx.float32).reshape(-1))[-2:]
        chosen.append(int(token))
        leads.append(float((best[1] - best[0]).item()))
        if int(token) in last:
            break
    return Spoken(chosen, leads, first - began, time.perf_counter() - first)


def perplexity(job: Job, model: Any, rows: list[list[int]]) -> float:
    """Of all tokens but the first of each row, row by row."""
    total, count = 0.0, 0
    for done, row in enumerate(rows, 1):
        logits = model(mx.array([row]))[0, :-1].astype(mx.float32)
        targets = mx.array(row[1:])[:, None]
        losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, targets, -1)[:, 0]
        total, count = total + float(losses.sum().item()), count + len(row) - 1
        job.advance(done, len(rows), "rows")
    return _exp(total / count) if count else math.nan


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 and tokens > 0 else None


def mlx_row(
    kind: str,
    model: Any,
    prompts: list[list[int]],
    spoken: list[Spoken],
    told: float,
    match: float | None = None,
) -> Row:
    """The row of MLX; ``told`` is its perplexity."""
    return Row(
        "mlx",
        kind,
        weight_bytes(model),
        told if math.isfinite(told) else None,
        match,
        _rate(sum(map(len, prompts)), sum(s.prompt_seconds for s in spoken)),
        _rate(sum(len(s.tokens) - 1 for s in spoken), sum(s.seconds for s in spoken)),
    )


def llama_row(kind: str, size: int, answer: Answer, match: float) -> Row:
    """The row of llama.cpp, with its own clock."""
    said = answer.spoken
    return Row(
        "llama.cpp",
        kind,
        size,
        None if answer.loss is None else _exp(answer.loss),
        match,
        _rate(sum(s.prompt_tokens for s in said), sum(s.prompt_ms for s in said) / 1000),
        _rate(sum(s.tokens for s in said), sum(s.ms for s in said) / 1000),
    )


# --- The file's own weights in MLX --------------------------------------------------------


def can_take_back(loaded: Loaded, kind: str) -> bool:
    """Say whether MLX computes with the weights of a file of this type as they are stored."""
    return loaded.config["model_type"] in _BACK and (kind in _FLOATS or kind in _PACKED)


def take_back(loaded: Loaded, path: Path, kind: str) -> Any:
    """Return a model of MLX with the weights of a GGUF file, packed where the file packs them."""
    classes = _get_classes(loaded.config)
    fresh = classes[0](classes[1].from_dict(loaded.config))
    if kind in _FLOATS:
        wanted = _FLOATS[kind]
        fresh.update(tree_map(lambda v: v.astype(wanted), loaded.model.parameters()))
        return fresh.eval()
    source = Source.of(loaded)
    stored = mx.load(str(path))
    names = gguf.get_tensor_name_map(source.family.arch, len(source.model.layers))
    weights: list[tuple[str, Any]] = []
    bits: dict[str, int] = {}
    for told, value in tree_flatten(source.model.parameters()):
        name = names.get_name(told, try_suffixes=(".weight", ".bias"))
        base, inside = name.removesuffix(".weight"), told.removesuffix(".weight")
        if f"{base}.scales" in stored:
            bits[inside] = 32 * stored[name].shape[-1] // value.shape[-1]
            parts = (("weight", name), ("scales", f"{base}.scales"), ("biases", f"{base}.biases"))
            weights += [(f"{inside}.{p}", _as_mlx(source, name, stored[n])) for p, n in parts]
        else:
            weights.append((told, _as_mlx(source, name, stored[name])))
    nn.quantize(
        fresh,
        group_size=32,
        class_predicate=lambda path, _: (
            {"group_size": 32, "bits": bits[path]} if path in bits else False
        ),
    )
    fresh.load_weights(weights)
    return fresh.eval()


def _as_mlx(source: Source, name: str, value: Any) -> Any:
    """Undo what llama.cpp's layout did to the rows of q and k."""
    heads = source.heads_of(name)
    if heads is None:
        return value
    rows = value.shape[0]
    return (
        value.reshape(heads, rows // heads // 2, 2, *value.shape[1:])
        .swapaxes(1, 2)
        .reshape(value.shape)
    )


def agreement(model: Any, prompts: list[Prompt]) -> float:
    """The share of expected tokens that a model of MLX would choose too, each on its path."""
    same = total = 0
    for prompt in prompts:
        row = prompt.tokens + prompt.expected
        chosen = mx.argmax(model(mx.array([row[:-1]]))[0, len(prompt.tokens) - 1 :], axis=-1)
        same += int((chosen == mx.array(prompt.expected)).sum().item())
        total += len(prompt.expected)
    return same / total if total else 1.0
