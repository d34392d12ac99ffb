from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.web.site import Site


@pytest.fixture
def site(database_url: str, tmp_path: Path, broker_url: str) -> Iterator[Site]:
    """The web app on each database, with a directory store and a real Valkey."""
    site = Site(database_url, tmp_path, broker_url)
    yield site
    site.close()
