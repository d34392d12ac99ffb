"""Whom the command line talks to, what it keeps, and how it fails."""

import json
import stat
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from espalier.cli import common
from espalier.cli.follow import outcome
from espalier.errors import EspalierError, InvalidInput, NotFound, Unauthorized, Unavailable
from espalier.settings import settings


def test_a_login_is_kept_for_this_user_only() -> None:
    common.remember_login("https://one.example", "hf_one")
    common.remember_login("https://two.example", "hf_two")
    assert stat.S_IMODE(common.credentials_file().stat().st_mode) == 0o600
    assert common.target() == ("https://two.example", "hf_two")


def test_the_environment_wins_over_logins(monkeypatch: pytest.MonkeyPatch) -> None:
    common.remember_login("https://one.example", "hf_one")
    common.remember_login("https://two.example", "hf_two")
    monkeypatch.setenv("ESPALIER_URL", "https://one.example/")
    settings.cache_clear()
    assert common.target() == ("https://one.example", "hf_one")
    monkeypatch.setenv("ESPALIER_TOKEN", "hf_three")
    settings.cache_clear()
    assert common.target() == ("https://one.example", "hf_three")


def test_without_a_token_the_next_step_is_to_log_in() -> None:
    with pytest.raises(Unauthorized) as refused:
        common.connect()
    assert "espalier login http://127.0.0.1:8000" in (refused.value.hint or "")


def test_a_broken_credentials_file_is_named() -> None:
    common.remember_login("https://one.example", "hf_one")
    common.credentials_file().write_text("{")
    with pytest.raises(InvalidInput, match=r"credentials\.json"):
        common.target()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("x"), 2),
        (NotFound("x"), 2),
        (Unauthorized("x"), 2),
        (Unavailable("x"), 4),
        (EspalierError("x"), 1),
    ],
)
def test_a_refusal_is_a_sentence_a_hint_and_a_code(
    cli: CliRunner, error: EspalierError, code: int
) -> None:
    app = typer.Typer(cls=common.Commands)
    error.hint = "Do this [next]."

    @app.command()
    def refuse() -> None:
        raise error

    @app.command()
    def other() -> None: ...

    result = cli.invoke(app, ["refuse"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == "error: x\nhint:  Do this [next].\n"


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["succeeded"], 0),
        (["succeeded", "failed"], 1),
        (["succeeded", "cancelled"], 3),
        (["failed", "cancelled"], 1),
    ],
)
def test_the_exit_code_tells_how_jobs_ended(states: list[str], code: int) -> None:
    assert outcome([{"state": state} for state in states]) == code


def test_what_others_wrote_cannot_drive_the_terminal() -> None:
    assert common.plain("a\x1b[2Jb\x07\tc\n\x9bd\r") == "a[2Jb\tc\nd"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (2e9, "2.0 GB"),
        (3e15, "3000.0 TB"),
        (None, ""),
    ],
)
def test_sizes_are_written_as_people_do(size: float | None, text: str) -> None:
    assert common.size_text(size) == text


def test_login_checks_the_token_before_it_keeps_it(
    cli: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from espalier.cli import app as commands
    from espalier.client import Client

    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers["authorization"] == "Bearer hf_right":
            return httpx.Response(200, json={"user": "ada", "is_admin": False, "projects": []})
        return httpx.Response(401, json={"code": "unauthorized", "detail": "Unknown token."})

    def client(url: str, token: str) -> Client:
        return Client(url, token, transport=httpx.MockTransport(answer))

    monkeypatch.setattr(commands, "Client", client)
    refused = cli.invoke(commands.app, ["login", "https://one.example/"], input="hf_wrong\n")
    assert (refused.exit_code, refused.stderr) == (2, "error: Unknown token.\n")
    assert not common.credentials_file().exists()

    kept = cli.invoke(commands.app, ["login", "https://one.example/"], input="hf_right\n")
    assert kept.exit_code == 0
    assert "as ada" in kept.stdout
    assert json.loads(common.credentials_file().read_text()) == {
        "url": "https://one.example",
        "tokens": {"https://one.example": "hf_right"},
    }


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["login", "one.example"], "hf_x\n", "it begins with http:// or https://"),
        (["login", "https://one.example"], "", "No token came on standard input"),
        (["worker", "drain", "a/b"], "", "is no worker's name"),
        (["worker", "run"], "", "This machine is no worker yet"),
        (["dataset", "push", "absent", "team/x"], "", "absent cannot be read"),
        (["up", "--workers", "-1"], "", "--workers is -1"),
        (["up", "--port", "70000"], "", "70000 is no port"),
        (["up", "--host", "192.0.2.1"], "", "Nothing here can listen on 192.0.2.1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(
    cli: CliRunner, user: Path, arguments: list[str], stdin: str, said: str
) -> None:
    from espalier.cli.app import app

    result = cli.invoke(app, arguments, input=stdin)
    assert result.exit_code == 2
    assert said in result.stderr
