"""``espalier model|dataset prefetch|evict``: the public hub's files, before somebody waits."""

import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from espalier.cli.common import JsonFlag, connect, print_json, size_text, stderr, stdout, table
from espalier.client import Client
from espalier.errors import EspalierError, InvalidInput
from espalier.patterns import UPSTREAM_HEADER
from espalier.refs import HubRef, parse_ref

#: Seconds between two looks at a prefetch.
_EVERY = 1.0

RepoArgument = Annotated[str, typer.Argument(metavar="ORG/NAME[@REV]", help="On the hub behind.")]


def register(group: typer.Typer, kind: str) -> None:
    """Add the commands to ``espalier model`` or ``dataset``; ``kind`` as the hub says it."""
    group.command("prefetch")(_prefetch(kind))
    group.command("evict")(_evict(kind))


def _prefetch(kind: str) -> Callable[..., None]:
    def prefetch(
        repo: Annotated[
            str | None,
            typer.Argument(metavar="ORG/NAME[@REV]", help="Without: list what was asked for."),
        ] = None,
        include: Annotated[
            list[str] | None,
            typer.Option("--include", help="Files by pattern; default: weights and text."),
        ] = None,
        with_token: Annotated[
            bool,
            typer.Option(
                "--with-token",
                help="For gated ones: your own token of that hub, asked for or from stdin.",
            ),
        ] = False,
        wait: Annotated[bool, typer.Option(help="Until all of it is there.")] = True,
        as_json: JsonFlag = False,
    ) -> None:
        """Have the server fetch a repository of the public hub, for all; again: how far it is."""
        token = _ask_token() if with_token else None
        with connect() as client:
            if repo is None:
                _list(client, kind, as_json)
                return
            ref = _hub_ref(repo)
            body = {"repo": ref.repo, "kind": kind, "revision": ref.revision}
            answer = client.send(
                "POST",
                "/api/v1/mirror/prefetch",
                json={**body, "include": include or []},
                headers={UPSTREAM_HEADER: token} if token else None,
                idempotent=True,
            ).json()
            if wait:
                answer = _follow(client, answer)
        if as_json:
            print_json(answer)
        else:
            stdout().print(f"[bold]{answer['repo']}[/]  {_state(answer)}")
        if answer["state"] == "failed":
            raise EspalierError(answer["error"], hint=answer["hint"])

    return prefetch


def _evict(kind: str) -> Callable[..., None]:
    def evict(repo: RepoArgument, as_json: JsonFlag = False) -> None:
        """Throw out what the server keeps of a repository of the public hub. Admins only."""
        with connect() as client:
            answer = client.delete(f"/api/v1/mirror/{kind}/{_hub_ref(repo).repo}")
        if as_json:
            print_json(answer)
        else:
            stdout().print(f"{answer['files']} files, {size_text(answer['bytes'])} freed.")

    return evict


def _hub_ref(text: str) -> HubRef:
    ref = parse_ref(f"hf:{text.removeprefix('hf:')}")
    if not isinstance(ref, HubRef) or "/" not in ref.repo:
        raise InvalidInput(f"{text!r} is no repository of a hub: write org/name or org/name@rev.")
    return ref


def _ask_token() -> str:
    """Return a token that was typed or piped in: arguments are seen by everybody's `ps`."""
    if sys.stdin.isatty():
        token = str(typer.prompt("Token of the upstream hub", hide_input=True))
    else:
        token = sys.stdin.readline()
    if not token.strip():
        raise InvalidInput("No token came on standard input.")
    return token.strip()


def _follow(client: Client, answer: dict[str, Any]) -> dict[str, Any]:
    """Wait until it has ended; a line on a terminal says how far it is."""
    console = stderr()
    with console.status(_state(answer)) as status:
        while answer["state"] in ("waiting", "running"):
            time.sleep(_EVERY)
            answer = client.get(f"/api/v1/mirror/prefetch/{answer['id']}")
            status.update(f"{answer['repo']}  {_state(answer)}")
    return answer


def _list(client: Client, kind: str, as_json: bool) -> None:
    found = client.get("/api/v1/mirror")
    if as_json:
        print_json(found)
        return
    rows = [
        (f"{one['repo']}@{one['revision']}", one["state"], one["files"], *_sizes(one), one["error"])
        for one in found["prefetches"]
        if one["kind"] == kind
    ]
    table(("repository", "state", "files", "here", "of", ""), rows)
    held, budget = size_text(found["held"]), size_text(found["budget"])
    stdout().print(f"The mirror of {found['upstream']} holds {held} of {budget}.")


def _sizes(one: dict[str, Any]) -> tuple[str, str]:
    return size_text(one["have"]), size_text(one["size"])


def _state(one: dict[str, Any]) -> str:
    here, size = _sizes(one)
    return f"{one['state']}  {one['files']} files, {here} of {size}"
