"""Export to safetensors or GGUF, proved by another reader of the file."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import dequantize_model, save
from pydantic import ValidationError

from espalier.specs import ExportSpec
from espalier.states import ArtifactKind
from worker.engine.export import gguf_writer
from worker.engine.export.gguf_reader import Answer, Mismatch, Prompt, Reading
from worker.engine.export.gguf_tokenizer import CHECK_TEXTS
from worker.engine.measure import Limits, seed_everything
from worker.engine.models import Loaded, dtype_of, facts, load_model, versions
from worker.engine.proofs import HeldOut, Verdict, compare, held_out
from worker.engine.quantize.job import cast
from worker.engine.report import Cancelled, Job, ProofFailed, log

#: The share of greedy tokens that must be MLX's, by type; at 4 bits it is recorded only.
TOKEN_MATCH: dict[str, float | None] = {
    "f32": 1.0,
    "f16": 1.0,
    "bf16": 0.95,
    "q8_0": 0.95,
    "q4_0": None,
    "q4_1": None,
}
#: MLX's two best tokens may be so close, in nats, that rounding decides between them: a
#: difference there is a tie, not a fault. By the source's type and by the file's.
_NOISE = {
    "float32": 5e-3,
    "float16": 0.02,
    "bfloat16": 0.1,
    "f32": 5e-3,
    "f16": 0.01,
    "bf16": 0.1,
    "q8_0": 0.1,
    "q4_0": 0.1,
    "q4_1": 0.1,
}
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_PROMPTS = 4
_PROMPT_TOKENS = 48
#: How far perplexity may move when weights are only cast.
_CAST_LIMIT = 0.01


def run(job: Job) -> None:
    """Write the file and prove it; raises ProofFailed when the reader disagrees."""
    spec = job.task.spec
    assert isinstance(spec, ExportSpec)
    job.report.phase("loading")
    seed_everything(spec.seed)
    loaded = load_model(job.need("model"))
    if spec.format == "gguf":
        gguf_writer.architecture(loaded.config)
    if loaded.quantization:
        job.report.notice(
            f"The model is quantized ({loaded.quantization['bits']} bits): its weights are"
            f" dequantized first, and {spec.type} is made from those."
        )
        loaded.model = dequantize_model(loaded.model)
        for key in ("quantization", "quantization_config"):
            loaded.config.pop(key, None)
    if spec.format == "gguf":
        _export_gguf(job, spec, loaded)
    else:
        _export_safetensors(job, spec, loaded)


def _export_safetensors(job: Job, spec: ExportSpec, loaded: Loaded) -> None:
    """Cast, save, read back, and compare with the source on held-out text."""
    # One row at a time: two models are in memory, and the spec has no batch to make smaller.
    text = held_out(job, loaded, Limits(4, 8, 2048, spec.seed, rows=1))
    directory = job.output("model")
    job.report.phase("writing")
    dtype = _DTYPES[spec.type]
    copy = load_model(loaded.directory)
    copy.model = dequantize_model(copy.model)
    cast(copy.model, dtype)
    config = loaded.config | {"torch_dtype": dtype}
    save(directory, loaded.directory, copy.model, loaded.tokenizer, config, donate_model=True)
    job.report.phase("proving")
    written = load_model(directory)
    found = compare(job, loaded.model, written.model, text)
    verdict = Verdict(job)
    detail = f"{found.reference.tokens} tokens of {text.source}; mean KL {found.mean_kl:.3g}"
    verdict.at_most("perplexity_difference", abs(found.perplexity_increase), _CAST_LIMIT, detail)
    verdict.close("Use a wider type: bf16 keeps f32's range, f32 keeps all.")
    job.report.output("model", ArtifactKind.MODEL, directory, facts(written))


def _export_gguf(job: Job, spec: ExportSpec, loaded: Loaded) -> None:
    directory = job.output("gguf")
    path = directory / f"model-{spec.type}.gguf"
    tokenizer = Path(job.task.scratch_dir) / "tokenizer"
    loaded.tokenizer.save_pretrained(tokenizer)
    job.report.phase("writing")
    written = gguf_writer.write(
        loaded, tokenizer, path, spec.type, lambda d, n: job.advance(d, n, "tensors")
    )
    if written.wider:
        job.report.notice(
            f"{len(written.wider)} of {written.tensors} tensors are kept wider than {spec.type}:"
            f" {', '.join(written.wider[:5])}{'…' if len(written.wider) > 5 else ''}"
        )
    log.info("%s: %d tensors, %d bytes", path.name, written.tensors, written.size)
    job.report.phase("proving")
    match = _prove_gguf(job, spec, loaded, path)
    job.report.metrics(0, token_match=match, size_bytes=written.size)
    meta = {
        "type": spec.type,
        "size_bytes": written.size,
        "model_type": loaded.config["model_type"],
        "exported_from": spec.model,
        "versions": versions(),
    }
    job.report.output("gguf", ArtifactKind.GGUF, directory, meta)


def _prove_gguf(job: Job, spec: ExportSpec, loaded: Loaded, path: Path) -> float:
    """Compare llama.cpp with MLX: the tokens of a check text, and greedy tokens of prompts."""
    text = held_out(job, loaded, Limits(1, _PROMPTS, 2048, spec.seed))
    prompts, gaps = [], []
    for tokens in _prompts(text):
        expected, near = greedy(loaded, tokens, spec.proof_tokens)
        prompts.append(Prompt(tokens=tokens, expected=expected))
        gaps.append(near)
        job.orders.check()
    ends = sorted(loaded.tokenizer.eos_token_ids)
    answer = _ask(job, Reading(path=str(path), texts=list(CHECK_TEXTS), prompts=prompts, ends=ends))

    verdict = Verdict(job)
    encode = loaded.tokenizer.encode
    same = [
        encode(check, add_special_tokens=False) == tokens
        for check, tokens in zip(CHECK_TEXTS, answer.tokenized, strict=True)
    ]
    for check, equal in zip(CHECK_TEXTS, same, strict=True):
        if not equal:
            log.warning("llama.cpp reads other tokens in %r", check)
    verdict.at_least(
        "tokenizer_match", sum(same) / len(same), 1.0, f"{len(same)} check texts, token by token"
    )
    noise = max(_NOISE.get(dtype_of(loaded.model), 0.1), _NOISE[spec.type])
    strays, ties = _sort(answer.mismatches, prompts, gaps, noise, loaded)
    total = sum(len(prompt.expected) for prompt in prompts) - ties
    match = (total - strays) / total if total else 1.0
    detail = f"{total - strays} of {total} greedy tokens over {len(prompts)} prompts"
    if ties:
        detail += f"; {ties} left out, where MLX's two best tokens are within {noise} nats"
    limit = TOKEN_MATCH[spec.type] if spec.min_token_match is None else spec.min_token_match
    verdict.at_least("token_match", match, limit, detail)
    verdict.close("Export to a wider type; the log names what differed.")
    return match


def _prompts(text: HeldOut) -> list[list[int]]:
    """The first half of rows of held-out text, at most 48 tokens each."""
    rows = [text.dataset[i][0] for i in range(min(_PROMPTS, len(text.dataset)))]
    return [row[: max(1, min(len(row) // 2, _PROMPT_TOKENS))] for row in rows]


def greedy(loaded: Loaded, tokens: list[int], count: int) -> tuple[list[int], list[float]]:
    """Continue greedily by MLX, up to and with an end token; return tokens and leads.

    A lead is the log probability of the chosen token less that of the next best, in nats.
    """
    ends = set(loaded.tokenizer.eos_token_ids)
    chosen, leads = [], []
    for token, log_probs in generate_step(mx.array(tokens), loaded.model, max_tokens=count):
        best = mx.sort(log_probs.astype(mx.float32).reshape(-1))[-2:]
        chosen.append(int(token))
        leads.append(float((best[1] - best[0]).item()))
        if int(token) in ends:
            break
    return chosen, leads


def _sort(
    mismatches: list[Mismatch],
    prompts: list[Prompt],
    leads: list[list[float]],
    noise: float,
    loaded: Loaded,
) -> tuple[int, int]:
    """Count the mismatches that are differences, and those that are ties."""
    strays = ties = 0
    for found in mismatches:
        lead = leads[found.prompt][found.position]
        tie = lead < noise
        ties, strays = ties + tie, strays + (not tie)
        expected = prompts[found.prompt].expected[found.position]
        log.info(
            "prompt %d, token %d: MLX %r, llama.cpp %r; MLX's lead is %.4g nats%s",
            found.prompt,
            found.position,
            loaded.tokenizer.decode([expected]),
            "the end" if found.token is None else loaded.tokenizer.decode([found.token]),
            lead,
            ": a tie" if tie else "",
        )
    return strays, ties


def _ask(job: Job, reading: Reading) -> Answer:
    """Run the reader in a process of its own; raises ProofFailed when it cannot read the file."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "worker.engine.export.gguf_reader"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as reader:
        said, logged = _converse(job, reader, reading.model_dump_json() + "\n")
    try:
        return Answer.model_validate_json(said)
    except ValidationError as error:
        for line in logged.splitlines()[-20:]:
            log.error("llama.cpp: %s", line)
        raise ProofFailed(
            f"llama.cpp could not read {Path(reading.path).name} (exit status"
            f" {reader.returncode}). Nothing is published.",
            "The log has its last lines.",
        ) from error


def _converse(job: Job, reader: "subprocess.Popen[str]", line: str) -> tuple[str, str]:
    """Ask and wait, obeying a cancel order meanwhile; return the answer and the log."""
    question: str | None = line
    while True:
        try:
            return reader.communicate(question, timeout=0.5)
        except subprocess.TimeoutExpired:
            question = None  # it is on its way
            if job.orders.cancelled:
                reader.kill()
                raise Cancelled from None
