"""Export to safetensors or GGUF, proved by another reader of the file."""

import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lm.utils import dequantize_model

from espalier.exporting import FLOATS, K_TYPES, check_gguf
from espalier.specs import ExportSpec
from espalier.states import ArtifactKind
from worker.engine.export import (
    card,
    folder,
    gguf_mixes,
    gguf_writer,
    llama_api,
    modelfile,
    proving,
)
from worker.engine.export.gguf_arch import Source
from worker.engine.export.gguf_tokenizer import read_vocabulary
from worker.engine.measure import seed_everything
from worker.engine.models import Loaded, dtype_of, load_model, read_json, versions
from worker.engine.report import BadInput, Job, log

#: Where llama.cpp's own converter is, as a command: a script, or a Python and a script.
CONVERTER = "ESPALIER_CONVERTER"
#: The type that holds all that a model's weights say.
_LOSSLESS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def run(job: Job) -> None:
    """Write the file and prove it; raises ProofFailed when the reader disagrees."""
    spec = job.task.spec
    assert isinstance(spec, ExportSpec)
    job.report.phase("loading")
    seed_everything(spec.seed)
    if spec.format == "safetensors":
        folder.export(job, spec)
        return
    command = _check(job, spec)
    loaded = load_model(job.need("model"))
    if loaded.quantization:
        job.report.notice(
            f"The model is quantized ({loaded.quantization['bits']} bits): its weights are"
            f" dequantized first, and {', '.join(spec.wanted)} is made from those."
        )
        loaded.model = dequantize_model(loaded.model)
        for key in ("quantization", "quantization_config"):
            loaded.config.pop(key, None)
    _export(job, spec, loaded, command)


def _check(job: Job, spec: ExportSpec) -> list[str] | None:
    """Refuse what cannot work; return the converter's command where it is to write the files."""
    model = job.need("model")
    path = model / "tokenizer.json"
    rules = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    config = read_json(model / "config.json")
    check_gguf(config, spec.wanted, spec.writer, rules, spec.pre_tokenizer)
    if spec.writer == "own":
        return None
    command = converter()
    if command is None:
        raise BadInput(
            "This worker has no llama.cpp converter: convert_hf_to_gguf.py is not on its PATH, and"
            f" {CONVERTER} is not set.",
            f"Install llama.cpp there (brew install llama.cpp), or set {CONVERTER} to the command:"
            " a Python that has torch, and the script. Or export with format safetensors.",
        )
    return command


def converter() -> list[str] | None:
    """Return the command of llama.cpp's ``convert_hf_to_gguf.py``, where it is installed."""
    if said := os.environ.get(CONVERTER):
        command = shlex.split(said)
        return [sys.executable, *command] if command[0].endswith(".py") else command
    found = shutil.which("convert_hf_to_gguf.py")
    return [found] if found else None


@dataclass(frozen=True, slots=True)
class _File:
    """A file that was written, and the tensors kept wider than its type."""

    path: Path
    kind: str
    wider: tuple[str, ...] = ()


def _export(job: Job, spec: ExportSpec, loaded: Loaded, command: list[str] | None) -> None:
    directory = job.output("gguf")
    job.report.phase("writing")
    files = _write(job, spec, loaded, command, directory)
    for file in files:
        if file.wider:
            told = f"{', '.join(file.wider[:5])}{'…' if len(file.wider) > 5 else ''}"
            job.report.notice(f"{len(file.wider)} tensors are kept wider than {file.kind}: {told}")
    job.report.phase("proving")
    reference = proving.refer(job, spec, loaded)
    for file in files:
        row = proving.prove(job, spec, reference, file.path, file.kind)
        if spec.side_by_side and file.kind != reference.rows[0].format:
            proving.also_in_mlx(job, reference, file.path, file.kind)
        suffix = f"_{file.kind}" if len(files) > 1 else ""
        values = {"token_match": row.token_match, "size_bytes": row.size_bytes,
                  "perplexity": row.perplexity}  # fmt: skip
        job.report.metrics(0, **{f"{k}{suffix}": v for k, v in values.items() if v is not None})
    proving.tell(job, reference)
    _publish(job, spec, reference, files, directory)


def _publish(
    job: Job, spec: ExportSpec, reference: proving.Reference, files: list[_File], directory: Path
) -> None:
    """Put beside the files what people need to use them, and announce the folder."""
    loaded = reference.loaded
    names = [file.path.name for file in files]
    note = modelfile.write(directory, loaded.tokenizer, names[-1])
    if note:
        job.report.notice(note)
    lines = [json.dumps(sample, ensure_ascii=False) for sample in reference.samples]
    (directory / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    card.write_gguf(directory, job, loaded, reference, names)
    meta: dict[str, Any] = {
        "type": ", ".join(file.kind for file in files),
        "size_bytes": sum(file.path.stat().st_size for file in files),
        "model_type": loaded.config["model_type"],
        "exported_from": spec.model,
        "samples": "prompts.jsonl",
        "versions": versions(),
    }
    if reference.marks:
        meta["marked"] = "; ".join(reference.marks)
    job.report.output("gguf", ArtifactKind.GGUF, directory, meta)


# --- Writing ------------------------------------------------------------------------------


def _write(
    job: Job, spec: ExportSpec, loaded: Loaded, command: list[str] | None, directory: Path
) -> list[_File]:
    """Write every type that is wanted; K types come out of the widest file of floats."""
    plain = [kind for kind in spec.wanted if kind not in K_TYPES]
    floats = [kind for kind in plain if kind in FLOATS]
    lossless = _LOSSLESS.get(dtype_of(loaded.model), "f32")
    base = next((kind for kind in ("f32", lossless) if kind in floats), None)
    made: dict[str, _File] = {}
    for kind in plain:
        path = directory / f"model-{kind}.gguf"
        made[kind] = _File(path, kind, _one(job, spec, loaded, command, path, kind))
    if spec.k_types:
        scratch = Path(job.task.scratch_dir) / "floats.gguf"
        source = made[base].path if base else scratch
        if base is None:
            _one(job, spec, loaded, command, scratch, lossless)
        for mix in spec.k_types:
            path = directory / f"model-{mix}.gguf"
            _mix(job, source, path, mix)
            made[mix] = _File(path, mix)
        scratch.unlink(missing_ok=True)
    return [made[kind] for kind in spec.wanted]


def _one(
    job: Job, spec: ExportSpec, loaded: Loaded, command: list[str] | None, path: Path, kind: str
) -> tuple[str, ...]:
    if command:
        _convert(job, loaded, command, path, kind)
        return ()
    scratch = Path(job.task.scratch_dir) / "tokenizer"
    loaded.tokenizer.save_pretrained(scratch)
    source = Source.of(loaded)
    vocabulary = read_vocabulary(
        scratch, loaded.tokenizer, source.args.vocab_size, spec.pre_tokenizer
    )
    about = gguf_writer.About(card.name_of(spec.model), card.license_of(loaded.directory))
    written = gguf_writer.write(
        source, vocabulary, about, path, kind, lambda d, n: job.advance(d, n, "tensors")
    )
    log.info("%s: %d tensors, %d bytes", path.name, written.tensors, written.size)
    return written.wider


def _mix(job: Job, source: Path, path: Path, kind: str) -> None:
    """Have ggml round the weights, in a process that has no MLX; raises BadInput."""
    if gguf_mixes.installed() is None:
        try:
            llama_api.library()
        except llama_api.Missing as error:
            raise BadInput(
                f"type {kind} is made by ggml's own code, and this worker has none: {error}",
                "Install llama.cpp on the worker (its llama-quantize is used then), or another"
                " release of xllamacpp; or export to q8_0, q5_1, q5_0, q4_1 or q4_0.",
            ) from error
    command = [sys.executable, "-P", "-m", "worker.engine.export.gguf_mixes"]
    status, _, logged = proving.run_beside(job, [*command, str(source), str(path), kind])
    if status:
        for line in logged.splitlines()[-20:]:
            log.error("ggml: %s", line)
        raise RuntimeError(f"{path.name} was not made: ggml's process ended with {status}")
    log.info("%s: %d bytes", path.name, path.stat().st_size)


def _convert(job: Job, loaded: Loaded, command: list[str], path: Path, kind: str) -> None:
    """Have llama.cpp's converter write the file; it is told to stay off the network."""
    source = loaded.directory
    if "quantization" in read_json(source / "config.json"):
        source = Path(job.task.scratch_dir) / "plain"
        folder.write_plain(loaded, source)
    env = {k: v for k, v in os.environ.items() if k != "ESPALIER_EVENTS_FD"}
    env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "no_proxy": ""}
    env |= dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    status, said, logged = proving.run_beside(
        job, [*command, str(source), "--outfile", str(path), "--outtype", kind], env=env
    )
    if status or not path.is_file():
        lines = (said + logged).splitlines()
        for line in lines[-20:]:
            log.error("converter: %s", line)
        raise BadInput(
            f"llama.cpp's converter could not convert the model (exit status {status}):"
            f" {lines[-1] if lines else 'it said nothing'!s:.300}",
            "The log has its last lines. Export with format safetensors works for every model.",
        )
