"""``espalier dataset|model|adapter push`` and ``espalier pull``."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from espalier import splits
from espalier.cli import adapters, installing, mirror
from espalier.cli.common import (
    JsonFlag,
    connect,
    print_json,
    size_text,
    stdout,
    table,
)
from espalier.cli.moving import RateFlag, limits, moving, near
from espalier.cli.show import clock
from espalier.client import Client
from espalier.errors import Conflict, InvalidInput, NotFound
from espalier.messages import FileEntry
from espalier.refs import ArtifactRef, parse_artifact
from espalier.sending import digest
from espalier.states import ArtifactKind
from espalier.transfer import Transfer, files_below, scan
from espalier.vetting import vet_folder

RefArgument = Annotated[str, typer.Argument(metavar="REF", help="project/name")]
ParentFlag = Annotated[
    list[str] | None, typer.Option("--parent", help="What it was made from: a reference.")
]
_DEFAULT_PROJECT = "team"
#: Files that one question about room may name.
_ROOM_ASKED = 10_000
#: What the public hub has too, as it calls them.
HUB_KINDS = {ArtifactKind.DATASET: "datasets", ArtifactKind.MODEL: "models"}


def register(app: typer.Typer) -> None:
    for kind, help_text, command in (
        (ArtifactKind.DATASET, "Data sets.", push_dataset),
        (ArtifactKind.MODEL, "Models.", _push_folder(ArtifactKind.MODEL)),
        (ArtifactKind.ADAPTER, "Adapters.", _push_folder(ArtifactKind.ADAPTER)),
    ):
        group = typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)
        group.callback()(_group)
        group.command("push")(command)
        if kind == ArtifactKind.ADAPTER:
            adapters.register(group, command, download)
        if kind in HUB_KINDS:
            mirror.register(group, HUB_KINDS[kind])
        if kind == ArtifactKind.MODEL:
            installing.register(group, download)
        app.add_typer(group, name=kind.value)
    app.command("artifacts")(artifacts)
    app.command("pull")(pull)


def _group() -> None:
    return


def push_dataset(
    path: Annotated[
        Path,
        typer.Argument(help="A folder with train.jsonl, valid.jsonl, test.jsonl, or one file."),
    ],
    ref: RefArgument,
    seed: Annotated[int, typer.Option(help="Deals one file's rows out to the three.")] = 0,
    limit_rate: RateFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Publish a data set: one JSON object a line, with text, messages or prompt and completion."""
    if path.is_dir():
        _push_splits(path, ref, limit_rate, as_json)
        return
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error}.") from error
    dealt = splits.split(list(enumerate(lines, 1)), seed)
    with TemporaryDirectory(prefix="espalier-") as temporary:
        for name, rows in dealt.items():
            content = b"".join(line + b"\n" for _, line in rows)
            (Path(temporary) / f"{name}.jsonl").write_bytes(content)
        try:
            _push_splits(Path(temporary), ref, limit_rate, as_json)
        except InvalidInput as error:
            raise _in_one_file(error, path, dealt) from error


def _push_splits(folder: Path, ref: str, rate: str | None, as_json: bool) -> None:
    files = [f"{name}.jsonl" for name in splits.SPLITS if (folder / f"{name}.jsonl").is_file()]
    if not files:
        wanted = ", ".join(f"{name}.jsonl" for name in splits.SPLITS)
        raise InvalidInput(f"{folder} holds none of {wanted}.")
    entries = [_entry(folder, name) for name in files]
    with connect() as client:
        transfer = Transfer(client, limits=limits(rate))
        version = publish(client, folder, entries, ref, ArtifactKind.DATASET, (), transfer)
    _tell(version, as_json)


def _in_one_file(
    error: InvalidInput, path: Path, dealt: Mapping[str, Sequence[tuple[int, bytes]]]
) -> InvalidInput:
    """The same faults, at the lines of the file that was dealt out."""
    faults = []
    for fault in error.errors:
        match fault["loc"]:
            case [str(name), int(line), column] if line > 0:
                original = dealt[name.removesuffix(".jsonl")][line - 1][0]
                faults.append({"loc": [str(path), original, column], "msg": fault["msg"]})
            case _:
                return error
    if not faults:
        return error
    at = ":".join(str(part) for part in faults[0]["loc"])
    return InvalidInput(f"{at}: {faults[0]['msg']}", hint=error.hint, errors=faults)


def _entry(folder: Path, name: str) -> FileEntry:
    sha256, size = digest(folder / name)
    return FileEntry(path=name, sha256=sha256, size=size)


def _push_folder(kind: ArtifactKind) -> Callable[..., None]:
    def push(
        directory: Annotated[
            Path, typer.Argument(metavar="DIR", help="As mlx-lm saves it.", file_okay=False)
        ],
        ref: RefArgument,
        parent: ParentFlag = None,
        limit_rate: RateFlag = None,
        as_json: JsonFlag = False,
    ) -> None:
        if not directory.is_dir():
            raise InvalidInput(f"{directory} is no folder.")
        if kind == ArtifactKind.ADAPTER:
            adapters.refuse_peft(directory, ref)
        vet_folder(directory)  # the server does as well, after hours of uploading
        with connect() as client:
            transfer = Transfer(client, limits=limits(limit_rate))
            version = publish_folder(client, directory, ref, kind, parent or (), transfer)
        _tell(version, as_json)

    push.__doc__ = f"Publish {'an' if kind == ArtifactKind.ADAPTER else 'a'} {kind.value} folder."
    return push


def _tell(version: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(version)
    else:
        stdout().print(f"[bold]{version['ref']}[/]  {version['commit']}  {_size(version['files'])}")


def publish_folder(
    client: Client,
    folder: Path,
    ref: str,
    kind: ArtifactKind,
    parents: Sequence[str] = (),
    transfer: Transfer | None = None,
) -> dict[str, Any]:
    """Upload a folder and publish it as the next version of ``ref``; return its document.

    Large files that the server cannot have are hashed while they go up, all others before.
    """
    target, transfer = _target(ref), transfer or Transfer(client)
    new = transfer.new_to_it(folder)
    sent: tuple[FileEntry, ...] = ()
    if new:
        _ask_for_room(client, target.project, new.values())
        with moving("uploading", sum(size for _, size in new.values())) as moved:
            sent = transfer.send(folder, new, moved)
    total = sum(path.stat().st_size for path in files_below(folder))
    with moving("hashing", total - sum(entry.size for entry in sent)) as moved:
        entries = scan(folder, moved, sent)
    return publish(client, folder, entries, ref, kind, parents, transfer)


def _target(ref: str) -> ArtifactRef:
    target = parse_artifact(ref, project=_DEFAULT_PROJECT)
    if target.selector:
        raise InvalidInput(f"{ref} names a version: push to {target.path}, it gets the next one.")
    return target


def publish(
    client: Client,
    folder: Path,
    entries: Sequence[FileEntry],
    ref: str,
    kind: ArtifactKind,
    parents: Sequence[str] = (),
    transfer: Transfer | None = None,
) -> dict[str, Any]:
    """Upload what is missing and publish the next version of ``ref``; return its document."""
    target = _target(ref)
    _ask_for_room(client, target.project, [(entry.sha256, entry.size) for entry in entries])
    with moving("uploading", sum(entry.size for entry in entries)) as moved:
        (transfer or Transfer(client)).push(folder, entries, moved)
    version: dict[str, Any] = client.post(
        f"/api/v1/artifacts/{target.path}/versions",
        {
            "kind": kind.value,
            "files": [entry.model_dump() for entry in entries],
            "meta": {},
            "parents": list(parents),
        },
    )
    return version


def _ask_for_room(client: Client, project: str, files: Iterable[tuple[str, int]]) -> None:
    """Raise QuotaExceeded now, not after hours of uploading. ``files`` are sha256 and bytes."""
    largest = dict(sorted(files, key=lambda file: -file[1])[:_ROOM_ASKED])
    with suppress(NotFound):  # a project that is not there yet has no quota
        client.post(f"/api/v1/projects/{project}/room", {"files": largest})


def artifacts(
    kind: Annotated[ArtifactKind | None, typer.Option()] = None,
    project: Annotated[str | None, typer.Option()] = None,
    search: Annotated[str | None, typer.Option("-q", "--search", help="In project/name.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List data sets, models, adapters, GGUF files and reports, last changed first."""
    params = {"kind": kind.value if kind else None, "project": project, "q": search}
    with connect() as client:
        answer = client.get("/api/v1/artifacts", params)
    if as_json:
        print_json(answer)
        return
    rows = []
    for one in answer["artifacts"]:
        latest, aliases = one["latest"], ", ".join(one["aliases"])
        size, made = size_text(latest["size"]), clock(latest["created_at"])
        rows.append((latest["ref"], one["kind"], size, aliases, made))
    table(("newest", "kind", "size", "aliases", "created"), rows)


def pull(
    ref: Annotated[str, typer.Argument(metavar="REF", help="project/name, @v3 or @alias.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace files of the same name in DIR.")
    ] = False,
    limit_rate: RateFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Download an artifact, verified; cut off, it goes on where it stopped.

    DIR appears when all of it is there.
    """
    version = download(ref, directory, limit_rate, force=force)
    if as_json:
        print_json({**version, "directory": str(directory.resolve())})
    else:
        stdout().print(f"[bold]{version['ref']}[/]  {directory}  {_size(version['files'])}")


def download(ref: str, directory: Path, rate: str | None, *, force: bool = False) -> dict[str, Any]:
    """Fetch a version into ``directory``, verified; return its document."""
    wanted = parse_artifact(ref, project=_DEFAULT_PROJECT)
    with connect() as client:
        version = find_version(client, wanted)
        entries = [FileEntry.model_validate(file) for file in version["files"]]
        transfer = Transfer(client, limits=limits(rate))
        fetch(transfer, entries, directory, force=force)
    return version


def find_version(client: Client, ref: ArtifactRef) -> dict[str, Any]:
    """Return the version's document."""
    path = f"/api/v1/artifacts/{ref.path}/versions/{ref.selector or 'latest'}"
    found: dict[str, Any] = client.get(path)
    return found


def fetch(
    transfer: Transfer, entries: Sequence[FileEntry], directory: Path, *, force: bool
) -> None:
    """Download the entries beside ``directory`` and move them in when all are verified.

    Raises Conflict when a file of another content is in the way, unless ``force``.
    """
    directory = directory.expanduser().absolute()
    if directory.exists() and not directory.is_dir():
        raise Conflict(f"{directory} is a file.", hint="Choose another directory.")
    wanted = [entry for entry in entries if not _is_there(directory, entry)]
    foreign = [entry.path for entry in wanted if (directory / entry.path).exists()]
    if foreign and not force:
        raise Conflict(
            f"{directory} has another {foreign[0]} already"
            + (f" (and {len(foreign) - 1} more)." if len(foreign) > 1 else "."),
            hint="Choose another directory, or say --force to replace it.",
        )
    staging = directory.with_name(f".{directory.name}.pull")
    staging.mkdir(parents=True, exist_ok=True)
    with moving("downloading", sum(entry.size for entry in wanted)) as moved:
        transfer.pull(staging, wanted, moved, near())
    _move_in(staging, directory, wanted)


def _is_there(directory: Path, entry: FileEntry) -> bool:
    path = directory / entry.path
    return path.is_file() and digest(path) == (entry.sha256, entry.size)


def _move_in(staging: Path, directory: Path, entries: Sequence[FileEntry]) -> None:
    kept = {entry.path for entry in entries}
    for path in staging.rglob("*"):  # of a version that was begun and given up
        if path.is_file() and path.relative_to(staging).as_posix() not in kept:
            path.unlink()
    if not directory.exists() or not any(directory.iterdir()):
        staging.replace(directory)
        return
    for entry in entries:
        target = directory / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        (staging / entry.path).replace(target)
    shutil.rmtree(staging)


def _size(files: Sequence[dict[str, Any]]) -> str:
    count = len(files)
    total = size_text(sum(file["size"] for file in files))
    return f"{count} file{'' if count == 1 else 's'}, {total}"
