"""Commands to use a version: the right ones for what it is, and sound when a shell reads them."""

import ast
import shlex
from typing import Any

import pytest

from web.pages.usage import Subject, by_tool, commands, is_quantized

HERE = "http://studio:8000"
HUB = f"HF_ENDPOINT={HERE} HF_TOKEN=$ESPALIER_TOKEN"


def lines(**more: Any) -> dict[str, list[str]]:
    """Return tool → its commands."""
    wanted = {"project": "team", "name": "sql", "kind": "model", "number": 3, "paths": ()}
    found = commands(Subject(endpoint=HERE, **{**wanted, **more}))
    return {tool: [use.command for use in uses] for tool, uses in by_tool(found).items()}


def test_a_model_runs_by_its_name() -> None:
    found = lines()
    assert found["mlx_lm"][0].startswith(f"{HUB} mlx_lm.generate --model team/sql --prompt ")
    assert found["vLLM"] == [f"{HUB} vllm serve team/sql"]
    assert found["LM Studio"] == ["espalier pull team/sql@v3 ~/.lmstudio/models/team/sql"]


def test_a_version_that_main_does_not_point_at_is_named() -> None:
    found = lines(is_head=False)
    assert found["mlx_lm"][0].startswith("espalier pull team/sql@v3 sql &&\nmlx_lm.generate")
    assert found["vLLM"] == [f"{HUB} vllm serve team/sql --revision v3"]
    assert found["hf"] == [f"{HUB} hf download team/sql --revision v3 --local-dir sql"]
    assert 'revision="v3"' in found["transformers"][0]


def test_weights_that_mlx_quantized_are_offered_to_nobody_else() -> None:
    found = lines(is_quantized=True)
    assert "transformers" not in found
    assert "vLLM" not in found
    assert is_quantized({"quantization": {"group_size": 64, "bits": 4}})
    assert not is_quantized({"quantization_config": {"quant_method": "gptq"}})


def test_an_adapter_comes_with_its_base() -> None:
    own = lines(kind="adapter", base="team/base@v1")["mlx_lm"][0].splitlines()
    assert own[:2] == ["espalier pull team/sql@v3 sql &&", "espalier pull team/base@v1 base &&"]
    assert own[2].startswith("mlx_lm.generate --model base --adapter-path sql --prompt")
    public = lines(kind="adapter", base="hf:Qwen/Qwen2.5-0.5B@main")["mlx_lm"][0]
    assert "mlx_lm.generate --model Qwen/Qwen2.5-0.5B --adapter-path sql" in public
    assert "mlx_lm" not in lines(kind="adapter")  # nobody knows its base


def test_a_gguf_file_goes_to_llama_cpp_and_ollama() -> None:
    found = lines(kind="gguf", paths=("README.md", "sql q8.gguf"))
    words = shlex.split(found["llama.cpp"][0])
    assert words[2:] == ["llama-server", "-hf", "team/sql", "--hf-file", "sql q8.gguf"]
    assert "printf '%s\\n' 'FROM ./sql/sql q8.gguf' > Modelfile" in found["Ollama"][0]
    assert set(lines(kind="gguf")) == {"espalier", "hf", "huggingface_hub"}


def test_a_data_set_is_trained_on_and_loaded() -> None:
    found = lines(kind="dataset")
    assert found["espalier"][0].endswith("--data team/sql@v3")
    assert found["hf"] == [f"{HUB} hf download team/sql --repo-type dataset --local-dir sql"]
    assert "load_dataset" in found["datasets"][0]


def test_what_lacks_files_can_only_be_fetched() -> None:
    assert set(lines(incomplete="It has no weights.")) == {"espalier", "hf", "huggingface_hub"}
    assert set(lines(kind="report")) == {"espalier"}


@pytest.mark.parametrize("kind", ["model", "adapter", "gguf", "dataset", "report"])
@pytest.mark.parametrize("is_head", [True, False])
def test_every_command_is_one_that_a_shell_and_python_can_read(kind: str, is_head: bool) -> None:
    nasty = 'it\'s "a" $(file) `x`.gguf'
    found = lines(kind=kind, is_head=is_head, base="team/base@v1", paths=(nasty,))
    for command in [line for each in found.values() for line in each]:
        words = shlex.split(command)
        if "python" in words:
            ast.parse(words[words.index("-c") + 1])
        for word in words:
            assert "$(file)" not in word or nasty in word
