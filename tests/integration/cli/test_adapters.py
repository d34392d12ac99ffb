"""``espalier adapter import`` and ``export``, against a server: in and out, every bit the same."""

import json
import shutil
from pathlib import Path

from espalier import peft, tensorfile
from tests.integration.cli.conftest import Terminal
from tests.integration.engine.peft_reference import DATA


def test_a_peft_adapter_comes_in_and_goes_out_again(terminal: Terminal, tmp_path: Path) -> None:
    terminal.site.with_inputs()
    folder = shutil.copytree(DATA / "lora", tmp_path / "peft")
    refused = terminal.run("adapter", "push", str(folder), "team/foreign", code=2)
    assert f"espalier adapter import {folder} team/foreign" in refused.stderr
    version = terminal.json(
        "adapter", "import", str(folder), "team/foreign", "--parent", "team/base"
    )
    assert {file["path"] for file in version["files"]} == {peft.CONFIG, peft.MLX_WEIGHTS}
    assert [parent["ref"] for parent in version["parents"]] == ["team/base@v1"]
    target = tmp_path / "back"
    told = terminal.run("adapter", "export", "team/foreign", str(target), "--base", "org/base")
    assert "base org/base" in told.stdout
    assert "lora: 6 layers, rank 4, scale 3" in told.stderr
    first, second = (tensorfile.read(where / peft.PEFT_WEIGHTS) for where in (folder, target))
    assert first == second
    assert json.loads((target / peft.CONFIG).read_text())["base_model_name_or_path"] == "org/base"
    terminal.run("adapter", "export", "team/foreign", str(target), code=2)


def test_what_cannot_be_exact_is_refused_before_anything_is_sent(
    terminal: Terminal, tmp_path: Path
) -> None:
    folder = shutil.copytree(DATA / "embedding", tmp_path / "peft")
    refused = terminal.run("adapter", "import", str(folder), "team/foreign", code=2)
    assert "tie_word_embeddings" in refused.stderr
    assert terminal.json("artifacts")["artifacts"] == []
    terminal.run("adapter", "import", str(folder), "team/foreign", "--untied")
    refused = terminal.run("adapter", "export", "team/foreign", str(tmp_path / "out"), code=2)
    assert "is the embedding" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_the_server_names_the_command_too(terminal: Terminal, tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "lora", tmp_path / "peft")
    (folder / "README.md").write_text("mine\n")
    refused = terminal.run("model", "push", str(folder), "team/foreign", code=2)
    assert "espalier adapter import DIR PROJECT/NAME" in refused.stderr
