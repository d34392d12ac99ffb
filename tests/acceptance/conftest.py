"""One embedded stack, one tiny model, one data set for the tests of this folder."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from espalier.textsql import write_dataset
from tests.acceptance.stacks import Up, up

if TYPE_CHECKING:
    from tests.acceptance.hub_server import Client, Server

WIKISQL = Path(__file__).parents[3] / "shared" / "data" / "wikisql"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with a trained tokenizer, made once."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    subprocess.run([sys.executable, "-m", "worker.engine.tiny", str(path)], check=True)
    return path


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-SQL data set in WikiSQL's format."""
    path = tmp_path_factory.mktemp("data") / "textsql"
    path.mkdir()
    write_dataset(path, rows=400, seed=0)
    return path


@pytest.fixture(scope="session")
def wikisql() -> Path:
    """WikiSQL itself, where the machine has it beside the project."""
    if not WIKISQL.is_dir():
        pytest.skip("WikiSQL is not on this machine: ../shared/data/wikisql")
    return WIKISQL


@pytest.fixture(scope="session")
def main_data(dataset: Path) -> Path:
    """WikiSQL where it is, else the project's own data in its format."""
    return WIKISQL if WIKISQL.is_dir() else dataset


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """An embedded stack with one worker."""
    with up(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """A hub without workers."""
    from tests.acceptance.hub_server import serving

    with serving(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(
    name="client",
    scope="session",
    params=["newest-xet", "newest-plain", "oldest-xet", "oldest-plain"],
)
def any_client(
    request: pytest.FixtureRequest,
    hub_server: "Server",
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator["Client"]:
    """A process with a version of huggingface_hub, uploading by Xet or not."""
    from tests.acceptance.hub_server import client

    version, _, way = request.param.partition("-")
    with client(hub_server, tmp_path_factory.mktemp("home") / "hf", version, way == "xet") as one:
        yield one
