"""Other people's tools by `HF_ENDPOINT`, on a whole stack: they train, publish, load and fetch."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.acceptance.hub_server import HUBS
from tests.acceptance.stacks import Up

#: The last of huggingface_hub that has what mlx-lm uploads with.
FOR_MLX_LM = "1.33.0"


class Tools:
    """Programs in a clean home whose only hub is the stack."""

    def __init__(self, stack: Up, home: Path) -> None:
        self.stack, self.home = stack, home

    def run(self, *command: str, **more: str) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": self.stack.url,
            "HF_TOKEN": self.stack.token,
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_OFFLINE": "0",
        }
        done = subprocess.run(
            [sys.executable, *command],
            env={**kept, **settings, **more},
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def tools(
    stack: Up, tiny_model: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Tools:
    stack.run("model", "push", str(tiny_model), "team/tiny")
    stack.run("dataset", "push", str(dataset), "team/textsql")
    found = Tools(stack, tmp_path_factory.mktemp("tools"))
    script = (  # mlx-lm makes a card of its model's card, and fails where there is none
        "from huggingface_hub import HfApi\n"
        "HfApi().upload_file(path_or_fileobj=b'# Tiny', path_in_repo='README.md',"
        " repo_id='team/tiny')\n"
    )
    found.run("-c", script)
    return found


@pytest.fixture(scope="module")
def adapter(tools: Tools) -> Path:
    """What `mlx_lm.lora` makes of a model and a data set that it knows by name."""
    path = tools.home / "adapter"
    tools.run(
        *("-m", "mlx_lm.lora", "--train", "--model", "team/tiny", "--data", "team/textsql"),
        *("--iters", "3", "--batch-size", "1", "--num-layers", "1", "--max-seq-length", "128"),
        *("--adapter-path", str(path)),
    )
    return path


def test_mlx_lm_trains_on_a_data_set_by_its_name(adapter: Path) -> None:
    assert (adapter / "adapters.safetensors").stat().st_size > 0


def test_what_mlx_lm_fuses_and_publishes_is_a_model_for_jobs(tools: Tools, adapter: Path) -> None:
    tools.run(
        *("-m", "mlx_lm.fuse", "--model", "team/tiny", "--adapter-path", str(adapter)),
        *("--save-path", str(tools.home / "fused"), "--upload-repo", "team/published"),
        PYTHONPATH=str(HUBS / FOR_MLX_LM),
    )
    job = tools.stack.json(
        *("train", "--model", "team/published", "--data", "team/textsql", "--iters", "2"),
        *("--num-layers", "1", "--batch-size", "1", "--wait"),
    )
    assert job["state"] == "succeeded", job


def test_datasets_loads_a_data_set_by_its_name(tools: Tools, dataset: Path) -> None:
    script = (
        "from datasets import load_dataset\n"
        "found = load_dataset('team/textsql')\n"
        "print(*(f'{name}={len(rows)}' for name, rows in sorted(found.items())))\n"
    )
    rows = {
        path.stem: sum(1 for _ in path.open())
        for path in dataset.iterdir()
        if path.suffix == ".jsonl"
    }
    printed = tools.run("-c", script).split()
    assert f"train={rows['train']}" in printed
    assert f"test={rows['test']}" in printed
    assert f"validation={rows['valid']}" in printed, "datasets' own name for it"


def test_what_llama_cpp_asks_for_is_answered(tools: Tools, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "tiny-q8_0.gguf", "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    data = (tmp_path / "tiny-q8_0.gguf").read_bytes()
    script = (
        "import sys; from huggingface_hub import HfApi; api = HfApi()\n"
        "api.create_repo('team/tiny-gguf', exist_ok=True)\n"
        "api.upload_file(path_or_fileobj=sys.argv[1], path_in_repo='tiny-q8_0.gguf',"
        " repo_id='team/tiny-gguf')\n"
    )
    tools.run("-c", script, str(tmp_path / "tiny-q8_0.gguf"))
    headers = {"User-Agent": "llama-cpp/b6000", "Authorization": f"Bearer {tools.stack.token}"}
    with httpx.Client(base_url=tools.stack.url, headers=headers) as llama:
        refs = llama.get("/api/models/team/tiny-gguf/refs").json()
        (commit,) = (b["targetCommit"] for b in refs["branches"] if b["name"] == "main")
        tree = llama.get(f"/api/models/team/tiny-gguf/tree/{commit}?recursive=true").json()
        (file,) = (entry for entry in tree if entry["path"].endswith(".gguf"))
        assert file["size"] == len(data)
        path = f"/team/tiny-gguf/resolve/{commit}/{file['path']}"
        head = llama.head(path)
        assert head.headers["ETag"].strip('"') == file["lfs"]["oid"]
        assert head.headers["Accept-Ranges"] == "bytes"
        assert llama.get(path).content == data
        rest = llama.get(path, headers={"Range": "bytes=10-"})
        assert (rest.status_code, rest.content) == (206, data[10:])
