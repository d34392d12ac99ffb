"""A finished file under a second name."""

import os
import shutil
from pathlib import Path


def link(source: Path, target: Path) -> None:
    """Give a finished file a second name; copy it where the disk has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
