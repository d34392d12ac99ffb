"""A built wheel holds everything that runs, and runs away from the repository."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
RENDER = """
from web import create_app
app = create_app()
with app.test_client() as client:
    page = client.get("/login")
    assert page.status_code == 200, page.status
    assert b"espalier" in page.data.lower()
    assert client.get("/static/espalier.css").status_code == 200
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    [built] = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the wheel's packages."""
    directory = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def test_every_file_that_runs_is_in_the_wheel(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "espalier", "scheduler", "worker", "web", "migrations"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    wanted = {path for path in listed.stdout.splitlines() if (REPOSITORY / path).exists()}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wanted - names == set()
    assert {"espalier/py.typed", "migrations/script.py.mako", "web/static/espalier.css"} <= names


def test_nothing_of_the_repository_around_it_is_in_the_wheel(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    tops = {name for name in tops if not name.endswith(".dist-info")}
    assert tops == {"espalier", "scheduler", "worker", "web", "migrations"}


def _run(installed: Path, data: Path, *arguments: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")}
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=data,
        env=env | {"PYTHONPATH": str(installed), "ESPALIER_DATA_DIR": str(data)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_from_there(installed: Path, tmp_path: Path) -> None:
    place = "import espalier, web; print(espalier.__file__, web.__file__)"
    assert _run(installed, tmp_path, "-c", place).count(str(installed)) == 2
    said = _run(installed, tmp_path, "-c", "from espalier.cli import main; main()", "version")
    assert said.startswith("espalier ")
    made = json.loads(_run(installed, tmp_path, "-m", "scheduler", "init", "--workers", "1"))
    assert made["token"].startswith("hf_")
    _run(installed, tmp_path, "-c", RENDER)
