"""The proof of a GGUF file: llama.cpp loads it and says what MLX says.

Both continue the same prompts greedily and read the same text. What a person asked for refuses;
what is below the default of a type marks the file, and hides nothing.
"""

import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from espalier.specs import ExportSpec
from worker.engine import data
from worker.engine.export import engines
from worker.engine.export.engines import Row, Spoken, Texts
from worker.engine.export.gguf_reader import Answer, Mismatch, Prompt, Reading
from worker.engine.export.gguf_tokenizer import CHECK_TEXTS
from worker.engine.models import Loaded, dtype_of
from worker.engine.report import Cancelled, Job, ProofFailed, log

#: The share of greedy tokens that must be MLX's, by type; below 8 bits it is recorded only.
TOKEN_MATCH = {"f32": 1.0, "f16": 1.0, "bf16": 0.95, "q8_0": 0.95}
#: How far perplexity may be from MLX's, as a fraction of it, by type.
PERPLEXITY = {"f32": 0.005, "f16": 0.01, "bf16": 0.02, "q8_0": 0.02}
#: MLX's two best tokens may be so close, in nats, that rounding decides between them: a
#: difference there is a tie, not a fault. By the source's type and by the file's.
_NOISE = {"float32": 5e-3, "float16": 0.02, "bfloat16": 0.1, "f32": 5e-3, "f16": 0.01}
_COARSE = 0.1
#: mlx-lm's names of types, as GGUF calls them.
_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
#: Letters of a text in the table; the file beside the model has all.
_SHOWN = 160


@dataclass(slots=True)
class Reference:
    """What MLX says, once, for every file of the job."""

    loaded: Loaded
    texts: Texts
    spoken: list[Spoken]
    perplexity: float
    rows: list[Row] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def prompts(self) -> list[Prompt]:
        return [
            Prompt(tokens=tokens, expected=said.tokens)
            for tokens, said in zip(self.texts.prompts, self.spoken, strict=True)
        ]

    @property
    def ends(self) -> list[int]:
        """MLX's own, and those that llama.cpp ends at by their text alone."""
        tokenizer = self.loaded.tokenizer
        known = {tokenizer.convert_tokens_to_ids(text) for text in _END_TEXTS}
        unknown = {None, tokenizer.unk_token_id}
        return sorted({*tokenizer.eos_token_ids, *(known - unknown)})


#: Tokens that llama.cpp takes for an end wherever a vocabulary has them.
_END_TEXTS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "<|end_of_text|>",
)


def refer(job: Job, spec: ExportSpec, loaded: Loaded) -> Reference:
    """Have MLX continue the prompts and read the text; it is done once for all types."""
    held, name = _held(job, loaded)
    texts = engines.texts_for(job, loaded, held, name, spec.proof_prompts)
    reference = Reference(loaded, texts, [], math.nan)
    ends = reference.ends
    engines.speak(loaded.model, texts.prompts[0], 2, ends)  # what is done once is not timed
    for done, tokens in enumerate(texts.prompts, 1):
        reference.spoken.append(engines.speak(loaded.model, tokens, spec.proof_tokens, ends))
        job.advance(done, len(texts.prompts), "prompts")
    reference.perplexity = engines.perplexity(job, loaded.model, texts.rows)
    kind = dtype_of(loaded.model)
    reference.rows.append(
        engines.mlx_row(
            _NAMES.get(kind, kind),
            loaded.model,
            texts.prompts,
            reference.spoken,
            reference.perplexity,
        )
    )
    return reference


def _held(job: Job, loaded: Loaded) -> tuple[Any | None, str]:
    directory = job.input("data")
    for split in ("test", "valid") if directory else ():
        assert directory
        found = data.open_split(directory, split, loaded.tokenizer)
        if found is not None:
            return found, f"the {split} split"
    job.report.notice("No held-out text: the engines are compared on text the model samples.")
    return None, ""


def prove(job: Job, spec: ExportSpec, reference: Reference, path: Path, kind: str) -> Row:
    """Compare llama.cpp with MLX on one file; raises ProofFailed where a person's limit is broken.

    A tokenizer that llama.cpp reads otherwise is never published.
    """
    answer = _ask(
        job,
        Reading(
            path=str(path),
            texts=list(CHECK_TEXTS),
            prompts=reference.prompts,
            ends=reference.ends,
            rows=reference.texts.rows,
        ),
    )
    suffix = f"_{kind}" if len(spec.wanted) > 1 else ""
    _judge_tokenizer(job, reference, answer)
    match, detail = _match(reference, answer, kind)
    row = engines.llama_row(kind, path.stat().st_size, answer, match)
    judge = _Judge(job, reference, path.name)
    judge.at_least(f"token_match{suffix}", match, spec.min_token_match, TOKEN_MATCH, kind, detail)
    if row.perplexity is None:
        job.report.notice(f"llama.cpp's perplexity is not told: {answer.untold}", "warning")
    else:
        change = row.perplexity / reference.perplexity - 1
        judge.at_most(
            f"perplexity_difference{suffix}",
            change,
            spec.max_perplexity_difference,
            PERPLEXITY,
            kind,
            f"llama.cpp {row.perplexity:.4f}, MLX {reference.perplexity:.4f} on {answer.tokens}"
            f" tokens of {reference.texts.source}",
        )
    judge.close()
    reference.rows.append(row)
    _keep_samples(reference, answer, kind)
    return row


def also_in_mlx(job: Job, reference: Reference, path: Path, kind: str) -> None:
    """Measure the file's weights in MLX too, where MLX computes with them as they are stored."""
    loaded = reference.loaded
    if not engines.can_take_back(loaded, kind):
        job.report.notice(f"MLX has no kernel for the weights of {path.name}: no row for it.")
        return
    model = engines.take_back(loaded, path, kind)
    prompts, ends = reference.texts.prompts, reference.ends
    engines.speak(model, prompts[0], 2, ends)
    spoken = []
    for done, prompt in enumerate(reference.prompts, 1):
        spoken.append(engines.speak(model, prompt.tokens, len(prompt.expected), ends))
        job.advance(done, len(prompts), "prompts")
    told = engines.perplexity(job, model, reference.texts.rows)
    match = engines.agreement(model, reference.prompts)
    reference.rows.append(engines.mlx_row(kind, model, prompts, spoken, told, match))


def tell(job: Job, reference: Reference) -> None:
    """Send the tables: both engines, and what they said to each prompt."""
    job.report.table("engines", engines.COLUMNS, [row.cells() for row in reference.rows])
    job.report.table(
        "prompts",
        ("type", "prompt", "mlx", "llama_cpp", "same"),
        [
            (s["type"], *(s[k][-_SHOWN:] for k in ("prompt", "mlx", "llama_cpp")), s["same"])
            for s in reference.samples
        ],
    )


def _keep_samples(reference: Reference, answer: Answer, kind: str) -> None:
    decode = reference.loaded.tokenizer.decode
    ends = frozenset(reference.ends)
    strayed = {found.prompt for found in answer.mismatches}
    for index, (prompt, said) in enumerate(zip(reference.prompts, answer.spoken, strict=True)):
        reference.samples.append(
            {
                "type": kind,
                "prompt": decode(prompt.tokens),
                "mlx": decode([t for t in prompt.expected if t not in ends]),
                "llama_cpp": said.text,
                "same": index not in strayed,
            }
        )


class _Judge:
    """Records proofs; what breaks a person's limit refuses, what breaks a default marks."""

    def __init__(self, job: Job, reference: Reference, name: str) -> None:
        self._job, self._reference, self._name = job, reference, name
        self._refused: list[str] = []

    def at_least(
        self, name: str, value: float, asked: float | None, by_type: dict[str, float], kind: str,
        detail: str,
    ) -> None:  # fmt: skip
        limit = by_type.get(kind) if asked is None else asked
        self._record(name, value, limit, limit is None or value >= limit, asked, detail)

    def at_most(
        self, name: str, value: float, asked: float | None, by_type: dict[str, float], kind: str,
        detail: str,
    ) -> None:  # fmt: skip
        limit = by_type.get(kind) if asked is None else asked
        self._record(name, value, limit, limit is None or abs(value) <= limit, asked, detail)

    def _record(
        self, name: str, value: float, limit: float | None, holds: bool, asked: float | None,
        detail: str,
    ) -> None:  # fmt: skip
        told = value if math.isfinite(value) else 1e300
        ok = None if limit is None else holds
        self._job.report.proof(name, told, limit=limit, ok=ok, detail=detail)
        if ok is not False:
            return
        said = f"{name} is {value:.4g}, the limit {limit:.4g} ({detail})"
        if asked is None:
            mark = f"{self._name}: {said}"
            self._reference.marks.append(mark)
            self._job.report.notice(f"Published, and marked: {mark}.", "warning")
        else:
            self._refused.append(said)

    def close(self) -> None:
        if self._refused:
            raise ProofFailed(
                f"{self._name}: {'; '.join(self._refused)}. Nothing is published.",
                "Export to a wider type, or leave the limit to the type's default: the file is"
                " marked then. The log names what differed.",
            )


def _judge_tokenizer(job: Job, reference: Reference, answer: Answer) -> None:
    encode = reference.loaded.tokenizer.encode
    same = [
        encode(check, add_special_tokens=False) == tokens
        for check, tokens in zip(CHECK_TEXTS, answer.tokenized, strict=True)
    ]
    for check, equal in zip(CHECK_TEXTS, same, strict=True):
        if not equal:
            log.warning("llama.cpp reads other tokens in %r", check)
    share = sum(same) / len(same)
    detail = f"{len(same)} check texts, token by token"
    job.report.proof("tokenizer_match", share, limit=1.0, ok=share == 1.0, detail=detail)
    if share < 1.0:
        raise ProofFailed(
            f"tokenizer_match is {share:.4g}, the limit 1: llama.cpp reads other tokens in"
            f" {len(same) - sum(same)} of {len(same)} check texts. Nothing is published.",
            "The log names the texts. The pre-tokenizer is another one than the file says: name"
            " llama.cpp's with pre_tokenizer, or export with format safetensors.",
        )


def _match(reference: Reference, answer: Answer, kind: str) -> tuple[float, str]:
    """The share of greedy tokens that agree, ties left out, and what it was measured on."""
    source = _NOISE.get(dtype_of(reference.loaded.model), _COARSE)
    noise = max(source, _NOISE.get(kind, _COARSE))
    ties = sum(_is_tie(reference, found, noise) for found in answer.mismatches)
    total = sum(len(said.tokens) for said in reference.spoken) - ties
    strays = len(answer.mismatches) - ties
    detail = f"{total - strays} of {total} greedy tokens over {len(reference.spoken)} prompts"
    if ties:
        detail += f"; {ties} left out, where MLX's two best tokens are within {noise} nats"
    return ((total - strays) / total if total else 1.0), detail


def _is_tie(reference: Reference, found: Mismatch, noise: float) -> bool:
    said = reference.spoken[found.prompt]
    lead, decode = said.leads[found.position], reference.loaded.tokenizer.decode
    log.info(
        "prompt %d, token %d: MLX %r, llama.cpp %r; MLX's lead is %.4g nats%s",
        found.prompt,
        found.position,
        decode([said.tokens[found.position]]),
        "the end" if found.token is None else decode([found.token]),
        lead,
        ": a tie" if lead < noise else "",
    )
    return lead < noise


def _ask(job: Job, reading: Reading) -> Answer:
    """Run the reader in a process of its own; raises ProofFailed when it cannot read the file."""
    status, said, logged = run_beside(
        job,
        [sys.executable, "-P", "-m", "worker.engine.export.gguf_reader"],
        reading.model_dump_json() + "\n",
    )
    try:
        # The last whole line has the loss too, if the process got as far.
        return Answer.model_validate_json(said.rpartition("\n")[0].rpartition("\n")[2])
    except ValidationError as error:
        for line in logged.splitlines()[-20:]:
            log.error("llama.cpp: %s", line)
        raise ProofFailed(
            f"llama.cpp could not read {Path(reading.path).name} (exit status {status})."
            " Nothing is published.",
            "The log has its last lines.",
        ) from error


def run_beside(
    job: Job, command: list[str], said: str = "", env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a program to its end, obeying a cancel order; return status, output and its log."""
    question: str | None = said
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=env,
    ) as process:
        while True:
            try:
                out, logged = process.communicate(question, timeout=0.5)
                return process.returncode, out, logged
            except subprocess.TimeoutExpired:
                question = None  # it is on its way
                if job.orders.cancelled:
                    process.kill()
                    raise Cancelled from None
