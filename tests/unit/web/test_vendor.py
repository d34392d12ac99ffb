"""What the browser gets from others is listed, licensed and unchanged."""

import hashlib
import json
from pathlib import Path

import web

VENDOR = Path(web.__file__).parent / "static" / "vendor"
PACKAGES = json.loads((VENDOR / "VENDOR.json").read_text())


def test_every_vendored_file_has_the_digest_it_was_added_with() -> None:
    for package in PACKAGES:
        for name, digest in package["files"].items():
            assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


def test_every_vendored_file_is_listed_and_every_package_brings_its_licence() -> None:
    listed = {name for package in PACKAGES for name in package["files"]}
    present = {path.name for path in VENDOR.iterdir()} - {"VENDOR.json"}
    assert listed == present
    for package in PACKAGES:
        assert package["version"]
        assert package["licence"]
        assert any(name.endswith("LICENSE") for name in package["files"])
