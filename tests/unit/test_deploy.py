"""What is installed by hand must name what the product really has."""

import configparser
import importlib.util
import plistlib
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from espalier.cli.app import app
from espalier.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize(
    "path", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda p: p.stem
)
def test_units_start_programs_that_exist(path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(path)
    words = shlex.split(unit["Service"]["ExecStart"])
    module = words[words.index("-m") + 1]
    assert importlib.util.find_spec(f"{module}.__main__")


def test_the_launch_daemon_runs_a_command_that_exists() -> None:
    (path,) = (DEPLOY / "launchd").glob("*.plist")
    job = plistlib.loads(path.read_bytes())
    assert job["Label"] == path.stem
    done = CliRunner().invoke(app, [*job["ProgramArguments"][1:], "--help"])
    assert done.exit_code == 0, done.output


def test_the_environment_file_names_settings() -> None:
    lines = (DEPLOY / "espalier.env").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    known = {f"ESPALIER_{field.upper()}" for field in Settings.model_fields}
    assert names <= known
