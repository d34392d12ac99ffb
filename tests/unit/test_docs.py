"""What the documents name is there: tests, settings, and each other."""

import re
from pathlib import Path

import pytest

from espalier.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_every_test_that_reliability_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    known: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        known |= set(re.findall(r"def (test_\w+)\(", path.read_text()))
    assert named
    assert not named - known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_and_page_it_names_is_there(page: Path) -> None:
    text = page.read_text()
    settings = {f"ESPALIER_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"ESPALIER_[A-Z0-9]+(?:_[A-Z0-9]+)*", text)) - {"ESPALIER_CONFIG"}
    assert not {name for name in named - settings if not name.startswith("ESPALIER_TEST_")}
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link
