"""The README.md of an export: what it was made from, how, and the numbers it was proved by."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from espalier.refs import HubRef, parse_ref
from espalier.specs import ExportSpec
from worker.engine.models import Loaded, facts
from worker.engine.report import Job

if TYPE_CHECKING:
    from worker.engine.export.proving import Reference

#: Keys of the base's card that hold for what is made from it.
_KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")
_PROJECT = "team"


def front_matter(directory: Path) -> dict[str, Any]:
    """Return the metadata of a folder's README.md; empty where there is none to read."""
    path = directory / "README.md"
    if not path.is_file():
        return {}
    match = re.match(r"---\s*\n(.*?)\n---\s*\n", path.read_text("utf-8", "replace"), re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def license_of(directory: Path) -> str | None:
    """The license that the base's card names, if it names one."""
    found = front_matter(directory).get("license")
    return found if isinstance(found, str) else None


def name_of(ref: str) -> str:
    """A reference as a name for people: ``team/sql-fused@v3`` is sql-fused-v3."""
    parsed = parse_ref(ref, project=_PROJECT)
    if isinstance(parsed, HubRef):
        return parsed.repo.split("/")[-1]
    text = str(parsed).split("/", 1)[-1].replace("@", "-")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "model"


def write_model(
    directory: Path, job: Job, origin: Path, made: Loaded, numbers: dict[str, str], text: str
) -> None:
    """The card of a folder of safetensors; ``origin`` is the folder it was made from."""
    told = facts(made)
    usage = [
        "```bash",
        'mlx_lm.generate --model PATH --prompt "Hello"',
        "```",
        "",
        "Transformers and every program that reads the Hugging Face layout load the same folder.",
    ]
    table = {
        "Architecture": told["model_type"],
        "Parameters": f"{told['num_parameters']:,}",
        "Type": told["dtype"],
        **numbers,
    }
    lines = [*_table(table), "", f"Measured on {text}.", "", "## Usage", "", *usage]
    _write(directory, job, origin, lines, ["mlx", "safetensors"])


def write_gguf(
    directory: Path, job: Job, source: Loaded, reference: "Reference", names: list[str]
) -> None:
    """The card of GGUF files: both engines side by side, and how to load them."""
    lines = ["| engine | format | perplexity | prompt tokens/s | tokens/s | MB | token match |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in reference.rows:
        figures = (
            _figure(row.perplexity, 4),
            _figure(row.prompt_tokens_per_second, 1),
            _figure(row.tokens_per_second, 1),
            _figure(row.size_bytes / 1e6, 2),
            _figure(row.token_match, 3),
        )
        lines.append(f"| {row.engine} | {row.format} | {' | '.join(figures)} |")
    lines += ["", f"Measured on {reference.texts.source}. `prompts.jsonl` has what both said."]
    if reference.marks:
        lines += ["", f"> **Marked.** {'; '.join(reference.marks)}."]
    lines += ["", "## Usage", "", "```bash", f'llama-cli -m {names[-1]} -p "Hello"',
              "ollama create NAME -f Modelfile", "```"]  # fmt: skip
    _write(directory, job, source.directory, lines, ["gguf", "llama.cpp"])


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(rows: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def _write(directory: Path, job: Job, origin: Path, body: list[str], tags: list[str]) -> None:
    spec = job.task.spec
    assert isinstance(spec, ExportSpec)
    inherited = front_matter(origin)
    base = inherited.get("base_model") or spec.model
    head: dict[str, Any] = {k: inherited[k] for k in _KEPT if k in inherited}
    head |= {"base_model": base, "library_name": "mlx" if spec.format == "safetensors" else "gguf"}
    if spec.data:
        head["datasets"] = [spec.data]
    head["tags"] = [*tags, "espalier"]
    asked = spec.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    used = ("mlx", "mlx-lm") if spec.format == "safetensors" else ("mlx", "mlx-lm", "xllamacpp")
    made = [
        "## How it was made",
        "",
        f"By an export job of Espalier {version('espalier')}"
        f" from `{spec.model}`, with {', '.join(f'{n} {version(n)}' for n in used)}:",
        "",
        "```json",
        json.dumps({"kind": "export", **asked}, indent=2, ensure_ascii=False),
        "```",
    ]
    text = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {name_of(spec.model)}",
        "",
        *body,
        "",
        *made,
    ]
    (directory / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")
