"""What a person does with a version: the commands that fetch it and load it elsewhere."""

import shlex
from collections.abc import Mapping
from typing import Any

from espalier.states import ArtifactKind

_PROMPT = "Write a SQL query: how many rows are there?"


def commands(version: Mapping[str, Any], base: str | None, endpoint: str) -> list[tuple[str, str]]:
    """Return (what it does, command) for a version's document.

    ``base`` is the model under an adapter: a reference of the team's, or a public repository;
    ``endpoint`` is this server's address, for tools that pull by name.
    """
    folder = version["name"]
    found = [("Fetch it", shlex.join(["espalier", "pull", version["ref"], folder]))]
    kind = version["kind"]
    if kind == ArtifactKind.ADAPTER and base:
        model, fetch = _model(base)
        found += [("Fetch its base", fetch)] if fetch else []
        found.append(("Run it with MLX", _generate(model, ["--adapter-path", folder])))
    elif kind == ArtifactKind.MODEL:
        found.append(("Run it with MLX", _generate(folder, [])))
        by_name = _generate(f"{version['project']}/{folder}", [])
        found.append(("Or by name, without fetching it first", f"{_hub(endpoint)} {by_name}"))
    elif kind == ArtifactKind.GGUF:
        files = [f["path"] for f in version["files"] if f["path"].endswith(".gguf")]
        path = f"{folder}/{files[0]}" if files else folder
        found.append(
            ("Run it with llama.cpp", shlex.join(["llama-cli", "-m", path, "-p", _PROMPT]))
        )
    elif kind == ArtifactKind.DATASET:
        train = ["espalier", "train", "--model", "hf:Qwen/Qwen2.5-0.5B-Instruct", "--data"]
        found.append(("Train on it", shlex.join([*train, version["ref"]])))
        name = f"{version['project']}/{folder}"
        pull = shlex.join(["hf", "download", name, "--repo-type", "dataset"])
        found.append(("Or pull it with other tools", f"{_hub(endpoint)} {pull}"))
    return found


def _hub(endpoint: str) -> str:
    """Return the settings by which the hub's clients pull from here; the token is not shown."""
    return f"HF_ENDPOINT={shlex.quote(endpoint)} HF_TOKEN=$ESPALIER_TOKEN"


def _model(base: str) -> tuple[str, str | None]:
    """Return what mlx-lm loads the base by, and the command that fetches it first."""
    if base.startswith("hf:"):
        return base.removeprefix("hf:").partition("@")[0], None
    folder = base.partition("@")[0].rpartition("/")[2]
    return folder, shlex.join(["espalier", "pull", base, folder])


def _generate(model: str, more: list[str]) -> str:
    return shlex.join(["mlx_lm.generate", "--model", model, *more, "--prompt", _PROMPT])
