"""The browser of the tests: found, not brought."""

import os
import shutil
from pathlib import Path

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()


def chromium() -> str:
    """Return the path of a Chromium or Chrome; skip without one, except in CI."""
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    mac = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
    found = found or (str(mac) if mac.exists() else None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("CI needs a browser: install Chromium, or name one in CHROMIUM.")
    if found is None:
        pytest.skip("No Chromium or Chrome here: install one, or name it in CHROMIUM.")
    return found
