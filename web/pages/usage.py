"""What a person does with a version: the commands that fetch it and load it elsewhere.

Only those that work for what it is. Tools that pull by name always get what ``main`` points at,
unless they can be told a revision; another version is fetched into a folder first.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from espalier.states import ArtifactKind

_PROMPT = "Write a SQL query: how many rows are there?"
_LM_STUDIO = "~/.lmstudio/models"


@dataclass(frozen=True, slots=True)
class Use:
    """One way to use a version: the ``tool``, what the command does, and the command."""

    tool: str
    what: str
    command: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What commands are made for. ``paths`` are the files that tell how it is used.

    ``base`` is the model under an adapter: a reference of the team's, or ``hf:org/name``;
    ``endpoint`` is this server's address; ``is_head`` says that ``main`` points here;
    ``is_quantized``: in MLX's own way, which other loaders do not read.
    """

    project: str
    name: str
    kind: str
    number: int
    paths: Sequence[str]
    endpoint: str
    base: str | None = None
    is_head: bool = True
    is_quantized: bool = False
    incomplete: str | None = None

    @property
    def path(self) -> str:
        return f"{self.project}/{self.name}"

    @property
    def ref(self) -> str:
        return f"{self.path}@v{self.number}"

    def hub(self, *words: str) -> str:
        """Return a command of one of the hub's clients; the token is not shown."""
        where = f"HF_ENDPOINT={shlex.quote(self.endpoint)} HF_TOKEN=$ESPALIER_TOKEN"
        return f"{where} {shlex.join(words)}"

    def python(self, source: str) -> str:
        return self.hub("python", "-c", source)

    def revision(self) -> tuple[str, ...]:
        """Return what tells a client the version: nothing where it is what it gets anyway."""
        return () if self.is_head else ("--revision", f"v{self.number}")


def is_quantized(config: Mapping[str, object]) -> bool:
    """Say whether a model's config tells of weights that MLX quantized."""
    found = config.get("quantization")
    return isinstance(found, dict) and "quant_method" not in found


def commands(subject: Subject) -> list[Use]:
    """Return the ways to use a version, the shortest first, fetching at the end."""
    own = {
        ArtifactKind.ADAPTER: _adapter,
        ArtifactKind.MODEL: _model,
        ArtifactKind.GGUF: _gguf,
        ArtifactKind.DATASET: _dataset,
    }.get(ArtifactKind(subject.kind))
    found = list(own(subject)) if own and not subject.incomplete else []
    return [*found, *_fetching(subject)]


def by_tool(uses: Iterable[Use]) -> dict[str, list[Use]]:
    """Return the uses by tool, the tools in the order they come first in."""
    found: dict[str, list[Use]] = {}
    for use in uses:
        found.setdefault(use.tool, []).append(use)
    return found


def pushing(project: str, endpoint: str) -> list[Use]:
    """Return how one brings something into a project's store, for who has nothing there yet."""
    subject = Subject(project, "NAME", ArtifactKind.MODEL, 1, (), endpoint)
    data = shlex.join(["espalier", "dataset", "push", "FOLDER", f"{project}/wikisql"])
    model = shlex.join(["espalier", "model", "push", "FOLDER", f"{project}/qwen2.5-0.5b"])
    upload = subject.hub("hf", "upload", f"{project}/qwen2.5-0.5b", "FOLDER", ".")
    return [
        Use("espalier", "Push a data set", data),
        Use("espalier", "Push a model or an adapter", model),
        Use("hf", "Or with the tools of the Hugging Face Hub", upload),
    ]


# --- By kind ------------------------------------------------------------------------------


def _model(it: Subject) -> Iterator[Use]:
    if it.is_head:
        yield Use("mlx_lm", "Run it with MLX", it.hub(*_generate(it.path)))
        serve = it.hub("mlx_lm.server", "--model", it.path, "--port", "8081")
        yield Use("mlx_lm", "Serve it with MLX", serve)
    else:
        here = f"{_pull(it)} &&\n{shlex.join(_generate(it.name))}"
        yield Use("mlx_lm", "Run this version with MLX", here)
    if not it.is_quantized:
        more = "" if it.is_head else f', revision="v{it.number}"'
        source = (
            "from transformers import pipeline; "
            f"print(pipeline('text-generation', {json.dumps(it.path)}{more})"
            f"({json.dumps(_PROMPT)}))"
        )
        yield Use("transformers", "Run it with PyTorch", it.python(source))
        serve = it.hub("vllm", "serve", it.path, *it.revision())
        yield Use("vLLM", "Serve it on a GPU", serve)
    yield _lm_studio(it)
    yield Use("espalier", "Fine-tune it here", _train(f"{it.path}@v{it.number}", "DATA"))


def _adapter(it: Subject) -> Iterator[Use]:
    if it.base is None:
        return
    public = it.base.startswith("hf:")
    if public:
        model, first = it.base.removeprefix("hf:").partition("@")[0], _pull(it)
    else:
        model = it.base.partition("@")[0].rpartition("/")[2]
        fetch = shlex.join(["espalier", "pull", it.base, model])
        first = f"{_pull(it)} &&\n{fetch}"
    run = shlex.join(_generate(model, "--adapter-path", it.name))
    yield Use("mlx_lm", "Run it with MLX, over its base", f"{first} &&\n{run}")
    fuse = ["mlx_lm.fuse", "--model", model, "--adapter-path", it.name]
    fuse += ["--save-path", f"{it.name}-fused"]
    yield Use("mlx_lm", "Fuse it into its base", f"{first} &&\n{shlex.join(fuse)}")
    words = ["espalier", "fuse", "--model", it.base, "--adapter", it.ref]
    yield Use("espalier", "Fuse it here, with a proof", shlex.join(words))


def _gguf(it: Subject) -> Iterator[Use]:
    files = [path for path in it.paths if path.endswith(".gguf")]
    if not files:
        return
    file = files[0]
    if it.is_head:
        pull = ("-hf", it.path, "--hf-file", file)
        yield Use("llama.cpp", "Serve it with llama.cpp", it.hub("llama-server", *pull))
        run = it.hub("llama-cli", *pull, "-p", _PROMPT)
        yield Use("llama.cpp", "Run it with llama.cpp", run)
    else:
        run = shlex.join(["llama-cli", "-m", f"{it.name}/{file}", "-p", _PROMPT])
        yield Use("llama.cpp", "Run this version with llama.cpp", f"{_pull(it)} &&\n{run}")
    recipe = shlex.join(["printf", "%s\\n", f"FROM ./{it.name}/{file}"])
    name = it.name.lower()
    make = shlex.join(["ollama", "create", name, "-f", "Modelfile"])
    run = shlex.join(["ollama", "run", name])
    line = f"{_pull(it)} &&\n{recipe} > Modelfile &&\n{make} &&\n{run}"
    yield Use("Ollama", "Run it with Ollama", line)
    yield _lm_studio(it)


def _dataset(it: Subject) -> Iterator[Use]:
    yield Use("espalier", "Train on it here", _train("hf:Qwen/Qwen2.5-0.5B-Instruct", it.ref))
    if it.is_head:
        words = ("mlx_lm.lora", "--train", "--model", "Qwen/Qwen2.5-0.5B-Instruct")
        yield Use("mlx_lm", "Train on it with mlx-lm", it.hub(*words, "--data", it.path))
    more = "" if it.is_head else f', revision="v{it.number}"'
    load = f"load_dataset({json.dumps(it.path)}{more})"
    source = f"from datasets import load_dataset; print({load})"
    yield Use("datasets", "Load it with datasets", it.python(source))


def _fetching(it: Subject) -> Iterator[Use]:
    yield Use("espalier", "Fetch its files", _pull(it))
    if it.kind == ArtifactKind.REPORT:
        return
    kind = ("--repo-type", "dataset") if it.kind == ArtifactKind.DATASET else ()
    words = ("hf", "download", it.path, *kind, *it.revision(), "--local-dir", it.name)
    yield Use("hf", "Or with the tools of the Hugging Face Hub", it.hub(*words))
    more = f", repo_type={json.dumps('dataset')}" if kind else ""
    more += "" if it.is_head else f', revision="v{it.number}"'
    source = (
        "from huggingface_hub import snapshot_download; "
        f"print(snapshot_download({json.dumps(it.path)}{more}))"
    )
    yield Use("huggingface_hub", "Or from Python", it.python(source))


def _lm_studio(it: Subject) -> Use:
    # The names of projects and artifacts need no quotes, and in quotes ~ would mean nothing.
    line = f"espalier pull {it.ref} {_LM_STUDIO}/{it.path}"
    return Use("LM Studio", "Have it among LM Studio's models", line)


def _pull(it: Subject) -> str:
    return shlex.join(["espalier", "pull", it.ref, it.name])


def _train(model: str, data: str) -> str:
    return shlex.join(["espalier", "train", "--model", model, "--data", data])


def _generate(model: str, *more: str) -> list[str]:
    return ["mlx_lm.generate", "--model", model, *more, "--prompt", _PROMPT]
