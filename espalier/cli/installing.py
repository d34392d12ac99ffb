"""``espalier model install|publish``: a model into LM Studio, Ollama or another hub."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from espalier.cli.common import JsonFlag, connect, print_json, size_text, stdout
from espalier.cli.moving import RateFlag, moving
from espalier.errors import EspalierError, InvalidInput, Unauthorized
from espalier.lmstudio import lm_studio_models, ollama
from espalier.refs import ArtifactRef, parse_artifact
from espalier.states import ArtifactKind

_DEFAULT_PROJECT = "team"
_PUBLIC_HUB = "https://huggingface.co"
_GGUF = ".gguf"
#: Fetches (reference, folder, rate, force=) verified; returns the version's document.
Download = Callable[..., dict[str, Any]]
RefArgument = Annotated[str, typer.Argument(metavar="REF", help="project/name, @v3 or @alias.")]


def register(group: typer.Typer, download: Download) -> None:
    """Add the commands to ``espalier model``."""
    group.command("install")(_install(download))
    group.command("publish")(_publish(download))


def _install(download: Download) -> Callable[..., None]:
    def install(
        ref: RefArgument,
        lm_studio: Annotated[bool, typer.Option("--lm-studio", help="For LM Studio.")] = False,
        for_ollama: Annotated[bool, typer.Option("--ollama", help="For Ollama.")] = False,
        name: Annotated[
            str | None, typer.Option(help="What it is called there. Default: the artifact's name.")
        ] = None,
        force: Annotated[
            bool, typer.Option("--force", help="Replace files of the same name.")
        ] = False,
        limit_rate: RateFlag = None,
        as_json: JsonFlag = False,
    ) -> None:
        """Put a GGUF or a model where a program on this machine finds it, verified."""
        if lm_studio == for_ollama:
            raise InvalidInput(
                "Where to?", hint="Say --lm-studio or --ollama; `espalier pull` takes any folder."
            )
        wanted = parse_artifact(ref, project=_DEFAULT_PROJECT)
        called = name or wanted.name
        if for_ollama:
            program = ollama()
            _check_kind(wanted, gguf_only=True)
            version = _into_ollama(download, ref, program, called, limit_rate)
            where = called
        else:
            target = lm_studio_models() / wanted.project / called
            _check_kind(wanted, gguf_only=False)
            version = download(ref, target, limit_rate, force=force)
            where = str(target)
        _tell(version, where, as_json)

    return install


def _tell(version: dict[str, Any], where: str, as_json: bool) -> None:
    if as_json:
        print_json({**version, "installed": where})
    else:
        size = size_text(sum(file["size"] for file in version["files"]))
        stdout().print(f"[bold]{version['ref']}[/]  {where}  {size}")


def _version(ref: ArtifactRef) -> dict[str, Any]:
    with connect() as client:
        path = f"/api/v1/artifacts/{ref.path}/versions/{ref.selector or 'latest'}"
        found: dict[str, Any] = client.get(path)
    return found


def _check_kind(ref: ArtifactRef, *, gguf_only: bool) -> None:
    """Raise InvalidInput, before anything is fetched, for what the program cannot run."""
    version = _version(ref)
    if version["kind"] not in (ArtifactKind.GGUF, ArtifactKind.MODEL):
        raise InvalidInput(
            f"{version['ref']} is a {version['kind']}: a GGUF or a model can be installed.",
            hint="Fuse an adapter into its base first, then export.",
        )
    if gguf_only and not any(file["path"].endswith(_GGUF) for file in version["files"]):
        raise InvalidInput(
            f"{version['ref']} holds no GGUF file.",
            hint=f"`espalier export --model {version['ref']}` makes one.",
        )


def _into_ollama(
    download: Download, ref: str, program: str, name: str, rate: str | None
) -> dict[str, Any]:
    """Let Ollama read the files and keep its own copy, called ``name``."""
    with TemporaryDirectory(prefix="espalier-") as temporary:
        folder = Path(temporary) / "model"
        version = download(ref, folder, rate)
        modelfile = folder / "Modelfile"
        if not modelfile.is_file():
            model = sorted(folder.glob(f"*{_GGUF}"))[-1]
            modelfile.write_text(f"FROM ./{model.name}\n", encoding="utf-8")
        done = _run(program, "create", name, "-f", str(modelfile), folder=folder)
        if done.returncode == 0:
            done = _run(program, "show", name, "--modelfile", folder=folder)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise EspalierError(
            f"Ollama did not take {version['ref']}: {said[-1] if said else 'it said nothing'}.",
            hint="Is `ollama serve` running?",
        )
    return version


def _run(program: str, *arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


# --- Another hub --------------------------------------------------------------------------


def _publish(download: Download) -> Callable[..., None]:
    def publish(
        ref: RefArgument,
        to: Annotated[str, typer.Option("--to", metavar="ORG/NAME", help="The repository there.")],
        endpoint: Annotated[
            str | None, typer.Option(help=f"The hub. Default: $HF_ENDPOINT, else {_PUBLIC_HUB}.")
        ] = None,
        public: Annotated[
            bool, typer.Option("--public", help="A repository made anew is private without.")
        ] = False,
        token_stdin: Annotated[
            bool, typer.Option("--token-stdin", help="That hub's token. Default: $HF_TOKEN.")
        ] = False,
        message: Annotated[str | None, typer.Option(help="Of the commit there.")] = None,
        limit_rate: RateFlag = None,
        as_json: JsonFlag = False,
    ) -> None:
        """Upload a model, an adapter, a GGUF or a data set to another hub, by its own protocol."""
        if to.count("/") != 1 or not all(to.split("/")):
            raise InvalidInput(f"--to {to!r} is no repository: write ORG/NAME.")
        hub = (endpoint or os.environ.get("HF_ENDPOINT") or _PUBLIC_HUB).rstrip("/")
        token = _token(token_stdin, hub)
        with TemporaryDirectory(prefix="espalier-") as temporary:
            folder = Path(temporary) / "files"
            version = download(ref, folder, limit_rate)
            kind = "dataset" if version["kind"] == ArtifactKind.DATASET else "model"
            told = message or f"{version['ref']} ({version['commit'][:12]})"
            commit = _Hub(hub, token).upload(folder, to, kind, told, private=not public)
        if as_json:
            print_json({"ref": version["ref"], "repo": to, "endpoint": hub, "commit": commit})
        else:
            stdout().print(f"[bold]{version['ref']}[/]  {hub}/{to}  {commit[:12]}")

    return publish


def _token(from_stdin: bool, hub: str) -> str:
    """Return the token of the hub: arguments are seen by everybody's `ps`."""
    if from_stdin and sys.stdin.isatty():
        token = str(typer.prompt(f"Token of {hub}", hide_input=True))
    elif from_stdin:
        token = sys.stdin.readline()
    else:
        token = os.environ.get("HF_TOKEN", "")
    if not token.strip():
        raise Unauthorized(
            f"There is no token for {hub}.",
            hint="Set HF_TOKEN, or pipe it in: `… --token-stdin < FILE`.",
        )
    return token.strip()


class _Hub:
    """Another hub, by the library that its own people use."""

    def __init__(self, endpoint: str, token: str) -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise InvalidInput(
                "huggingface_hub is not installed here.", hint='pip install "espalier[hub]"'
            ) from error
        self._endpoint = endpoint
        self._api = HfApi(endpoint=endpoint, token=token)

    def upload(self, folder: Path, repo: str, kind: str, message: str, *, private: bool) -> str:
        """Make the repository where there is none; commit the folder and return the commit's id."""
        from huggingface_hub.errors import HfHubHTTPError

        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        try:
            with moving("publishing", total):
                self._api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
                done = self._api.upload_folder(
                    repo_id=repo, folder_path=folder, repo_type=kind, commit_message=message
                )
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            hint = "Try again: what is uploaded already is not sent twice."
            if status in (401, 403):
                hint = f"The token needs the right to write to {repo} there."
            raise EspalierError(
                f"{self._endpoint} refused {repo} ({status}): {str(error).splitlines()[0]:.300}",
                hint=hint,
            ) from error
        return str(done.oid)
