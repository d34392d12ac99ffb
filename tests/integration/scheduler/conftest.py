from pathlib import Path

import pytest

from scheduler.db import Database
from tests.integration.scheduler.stack import Stack


@pytest.fixture
def stack(database: Database, tmp_path: Path) -> Stack:
    """A scheduler on each database, with a base model and a data set in its store."""
    return Stack.make(database, tmp_path)
