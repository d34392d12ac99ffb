"""``espalier model install|publish``: into LM Studio's folder, Ollama, and another hub."""

import json
import stat
import struct
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.integration.cli.conftest import Terminal
from tests.integration.web.site import MODEL

#: The smallest header there is: version 3, no tensors, no keys.
FILES = {
    "model-q8_0.gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "Modelfile": b'FROM ./model-q8_0.gguf\nPARAMETER stop "</s>"\n',
    "README.md": b"# A model\n",
}


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home with nothing in it."""
    home = tmp_path / "user"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(home / "bin"))
    return home


@pytest.fixture
def exported(terminal: Terminal, tmp_path: Path) -> Terminal:
    """The project team with a GGUF."""
    answer = terminal.site.ada.publish(tmp_path / "gguf", "team/sql-gguf", "gguf", FILES)
    assert answer.status_code == 201, answer.text
    return terminal


def test_lm_studio_finds_it_by_publisher_and_name(exported: Terminal, user: Path) -> None:
    (user / ".lmstudio").mkdir()
    answer = exported.json("model", "install", "team/sql-gguf", "--lm-studio")
    there = user / ".lmstudio" / "models" / "team" / "sql-gguf"
    assert answer["installed"] == str(there)
    assert {p.name: p.read_bytes() for p in there.iterdir()} == FILES
    # Again: nothing is fetched, nothing is in the way.
    exported.run("model", "install", "team/sql-gguf@v1", "--lm-studio")
    (there / "model-q8_0.gguf").write_bytes(b"another")
    refused = exported.run("model", "install", "team/sql-gguf", "--lm-studio", code=2)
    assert "--force" in refused.stderr
    exported.run("model", "install", "team/sql-gguf", "--lm-studio", "--force")
    assert (there / "model-q8_0.gguf").read_bytes() == FILES["model-q8_0.gguf"]


def test_lm_studios_folder_may_be_elsewhere(exported: Terminal, user: Path) -> None:
    (user / "big" / "studio").mkdir(parents=True)
    (user / ".lmstudio-home-pointer").write_text(f"{user}/big/studio\n")
    exported.run("model", "install", "team/sql-gguf", "--lm-studio", "--name", "mine")
    assert (user / "big" / "studio" / "models" / "team" / "mine" / "README.md").is_file()


@pytest.mark.parametrize(
    ("flag", "program"), [("--lm-studio", "LM Studio"), ("--ollama", "Ollama")]
)
def test_a_machine_without_the_program_says_so(
    exported: Terminal, user: Path, flag: str, program: str
) -> None:
    refused = exported.run("model", "install", "team/sql-gguf", flag, code=2)
    assert f"{program} is not on this machine" in refused.stderr
    assert "espalier pull" in refused.stderr
    assert list(user.iterdir()) == []


def test_ollama_is_given_the_modelfile(exported: Terminal, user: Path) -> None:
    """A program in Ollama's place keeps what it was called with, and what lay there."""
    seen = user / "seen"
    program = user / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {seen}\n[ "$1" = show ] || /bin/cat "$4" >> {seen}\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    exported.run("model", "install", "team/sql-gguf", "--ollama", "--name", "sql")
    said = seen.read_text()
    assert said.startswith("create sql -f ")
    assert FILES["Modelfile"].decode() in said
    assert "show sql --modelfile" in said
    program.write_text("#!/bin/sh\necho 'could not connect' >&2\nexit 1\n")
    refused = exported.run("model", "install", "team/sql-gguf", "--ollama", code=1)
    assert "could not connect" in refused.stderr


def test_what_no_program_runs_is_refused_before_it_is_fetched(
    terminal: Terminal, user: Path
) -> None:
    (user / ".lmstudio").mkdir()
    terminal.site.with_inputs()
    refused = terminal.run("model", "install", "team/sql", "--lm-studio", code=2)
    assert "is a dataset" in refused.stderr
    assert "Where to?" in terminal.run("model", "install", "team/base", code=2).stderr
    terminal.run("model", "install", "team/base", "--lm-studio")
    there = user / ".lmstudio" / "models" / "team" / "base"
    assert {p.name: p.read_bytes() for p in there.iterdir()} == MODEL


def test_publish_to_a_hub_with_a_token_from_stdin(
    exported: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    to = ("--to", "team/published", "--endpoint", exported.url)
    refused = exported.run("model", "publish", "team/sql-gguf", *to, code=2)
    assert "--token-stdin" in refused.stderr
    token = exported.site.ada.token
    done = exported.run(
        "model", "publish", "team/sql-gguf", *to, "--token-stdin", "--json", stdin=f"{token}\n"
    )
    assert token not in done.output
    answer = json.loads(done.stdout)
    assert answer["repo"] == "team/published"
    found = exported.site.ada.get("/artifacts/team/published/versions/latest").json
    assert {file["path"] for file in found["files"]} >= set(FILES)
    (first, *_) = HfApi(endpoint=exported.url, token=token).list_repo_commits("team/published")
    assert "team/sql-gguf@v1" in first.title


def test_a_hub_that_refuses_is_told_without_the_token(
    exported: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongtoken123")
    to = ("--to", "team/published", "--endpoint", exported.url)
    refused = exported.run("model", "publish", "team/sql-gguf", *to, code=1)
    assert "401" in refused.stderr
    assert "hf_wrongtoken123" not in refused.output
    bad = exported.run("model", "publish", "team/sql-gguf", "--to", "name", code=2)
    assert "ORG/NAME" in bad.stderr
