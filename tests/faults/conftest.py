"""What the fault tests share; every test of this folder is marked ``fault``."""

from pathlib import Path

import pytest

from tests.acceptance.conftest import dataset, tiny_model

__all__ = ["dataset", "tiny_model"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.fault)
