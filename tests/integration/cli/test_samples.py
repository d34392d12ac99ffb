"""``espalier samples`` against the web app."""

from pathlib import Path

from tests.integration.cli.conftest import Terminal
from tests.integration.web.test_samples import evaluated


def test_samples_are_listed_and_filtered(terminal: Terminal, tmp_path: Path) -> None:
    job_id = evaluated(terminal.site, tmp_path / "out", rows=14)
    shown = terminal.run("samples", job_id, "--wrong").stdout
    assert shown.count("line ") == 2
    assert "finds" not in shown
    assert "2 of 2 shown" in shown
    assert terminal.json("samples", job_id, "--gained", "-q", "select")["total"] > 5
    refused = terminal.run("samples", job_id, "--wrong", "--lost", code=2)
    assert "choose one" in refused.stderr
