"""Safetensors as the Hugging Face libraries lay a model out, with a card that says how it was made.

Weights are written tensor after tensor (worker.engine.shards); what is not the model's (a cache's
key, a path, another library's quantization) is taken out of its config.
"""

import json
from pathlib import Path
from typing import Any

from mlx_lm.utils import dequantize_model

from espalier.specs import ExportSpec
from espalier.states import ArtifactKind
from worker.engine.export import card
from worker.engine.measure import Limits
from worker.engine.models import Loaded, facts, load_model
from worker.engine.proofs import Verdict, held_out
from worker.engine.quantize.plain import cast
from worker.engine.recording import against, record
from worker.engine.report import Job
from worker.engine.shards import open_model, save_model

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
#: How far perplexity may move when weights are only cast.
_CAST_LIMIT = 0.01
#: Keys of a config that speak of a machine, a cache or another file.
_NOT_THE_MODELS = (
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "quantization",
    "quantization_config",
)


def export(job: Job, spec: ExportSpec) -> None:
    """Cast, save, read back, and compare with the source on held-out text."""
    loaded = load_model(job.need("model"))
    if loaded.quantization:
        job.report.notice(
            f"The model is quantized ({loaded.quantization['bits']} bits): its weights are"
            f" dequantized first, and {spec.type} is made from those."
        )
    # One row at a time: the spec has no batch to make smaller.
    text = held_out(job, loaded, Limits(4, 8, 2048, spec.seed, rows=1))
    said = record(job, loaded.model, text, Path(job.task.scratch_dir) / "said")
    origin = loaded.directory
    del loaded  # what was made is measured alone in memory
    directory = job.output("model")
    job.report.phase("writing")
    dtype = DTYPES[spec.type]
    plan = open_model(origin)
    plan.model = dequantize_model(plan.model)
    cast(plan.model, dtype)
    config = clean(plan.config) | {"torch_dtype": dtype}
    save_model(directory, plan, config, lambda d, n: job.advance(d, n, "bytes"))
    clean_tokenizer(directory)
    job.report.phase("proving")
    written = load_model(directory)
    found = against(job, said, written.model, text)
    verdict = Verdict(job)
    detail = f"{found.reference.tokens} tokens of {text.source}; mean KL {found.mean_kl:.3g}"
    limit = spec.max_perplexity_difference
    verdict.at_most(
        "perplexity_difference",
        abs(found.perplexity_increase),
        _CAST_LIMIT if limit is None else limit,
        detail,
    )
    verdict.close("Use a wider type: bf16 keeps f32's range, f32 keeps all.")
    numbers = {
        "Perplexity": f"{found.candidate.perplexity:.4f}",
        "Perplexity of the source": f"{found.reference.perplexity:.4f}",
        "Mean KL from the source, nats a token": f"{found.mean_kl:.3g}",
    }
    card.write_model(directory, job, origin, written, numbers, text.source)
    job.report.output("model", ArtifactKind.MODEL, directory, facts(written))


def write_plain(loaded: Loaded, directory: Path) -> None:
    """Save a model whose weights were dequantized in memory, for a program that reads folders."""
    directory.mkdir(parents=True, exist_ok=True)
    plan = open_model(loaded.directory)
    plan.model = dequantize_model(plan.model)
    save_model(directory, plan, clean(loaded.config))


def clean(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without what speaks of the machine it was made on."""
    return {k: v for k, v in config.items() if k not in _NOT_THE_MODELS and v is not None}


def clean_tokenizer(directory: Path) -> None:
    """Take the cache's keys out of ``tokenizer_config.json``."""
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("name_or_path", "_commit_hash", "local_files_only", "is_local"):
        config.pop(key, None)
    path.write_text(
        json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
