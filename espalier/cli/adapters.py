"""``espalier adapter import|export``: adapters of Hugging Face's PEFT, in and out."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from espalier import peft
from espalier.cli.common import JsonFlag, print_json, stderr, stdout
from espalier.cli.moving import RateFlag
from espalier.errors import Conflict, InvalidInput
from espalier.vetting import vet_folder

#: Downloads a version into a folder and returns its document: reference, folder, rate.
Fetch = Callable[[str, Path, str | None], dict[str, Any]]

UntiedFlag = Annotated[
    bool,
    typer.Option(
        "--untied",
        help="Convert the embedding too: the base's config says tie_word_embeddings false.",
    ),
]


def register(group: typer.Typer, push: Callable[..., None], fetch: Fetch) -> None:
    """Add the commands to ``espalier adapter``; ``push`` is the command of that name."""
    group.command("import")(_importing(push))
    group.command("export")(_exporting(fetch))


def refuse_peft(directory: Path, ref: str) -> None:
    """Raise InvalidInput with the command that is meant, when a folder is a PEFT adapter."""
    if peft.is_peft({path.name for path in directory.iterdir()}):
        raise InvalidInput(
            f"{directory} is an adapter of PEFT, which mlx-lm does not load.",
            hint=f"Run `espalier adapter import {directory} {ref}`: it is converted and pushed.",
        )


def _importing(push: Callable[..., None]) -> Callable[..., None]:
    def import_(
        directory: Annotated[
            Path, typer.Argument(metavar="DIR", help="As PEFT saved it.", file_okay=False)
        ],
        ref: Annotated[str, typer.Argument(metavar="REF", help="project/name")],
        parent: Annotated[
            list[str] | None, typer.Option("--parent", help="The base model: a reference.")
        ] = None,
        untied: UntiedFlag = False,
        limit_rate: RateFlag = None,
        as_json: JsonFlag = False,
    ) -> None:
        """Convert a LoRA or DoRA of PEFT to mlx-lm's form, and publish it. Exact, or refused."""
        if not directory.is_dir():
            raise InvalidInput(f"{directory} is no folder.")
        vet_folder(directory)
        with TemporaryDirectory(prefix="espalier-") as temporary:
            folder = Path(temporary) / "adapter"
            _tell(peft.to_mlx(directory, folder, untied=untied))
            push(directory=folder, ref=ref, parent=parent, limit_rate=limit_rate, as_json=as_json)

    return import_


def _exporting(fetch: Fetch) -> Callable[..., None]:
    def export(
        ref: Annotated[str, typer.Argument(metavar="REF", help="project/name, @v3 or @alias.")],
        directory: Annotated[Path, typer.Argument(metavar="DIR", help="Must not exist.")],
        base: Annotated[
            str | None,
            typer.Option("--base", metavar="ORG/NAME", help="What PEFT loads the base from."),
        ] = None,
        untied: UntiedFlag = False,
        limit_rate: RateFlag = None,
        as_json: JsonFlag = False,
    ) -> None:
        """Download an adapter in PEFT's form, for PeftModel.from_pretrained. Exact, or refused."""
        if directory.exists():
            raise Conflict(f"{directory} exists already.", hint="Choose another directory.")
        with TemporaryDirectory(prefix="espalier-") as temporary:
            folder = Path(temporary) / "adapter"
            version = fetch(ref, folder, limit_rate)
            vet_folder(folder)
            made = Path(temporary) / "peft"
            found = peft.to_peft(folder, made, base=base, untied=untied)
            _place(made, directory)
        _tell(found)
        if as_json:
            print_json({**version, "directory": str(directory.resolve())})
        else:
            stdout().print(f"[bold]{version['ref']}[/]  {directory}  PEFT, base {found.base}")

    return export


def _place(made: Path, directory: Path) -> None:
    """Let ``directory`` appear with all its files."""
    directory.mkdir(parents=True)
    for name in (peft.PEFT_WEIGHTS, peft.CONFIG):
        (directory / name).write_bytes((made / name).read_bytes())


def _tell(found: peft.Converted) -> None:
    stderr().print(
        f"{found.kind}: {found.layers} layers, rank {found.rank}, scale {found.scale:g}",
        highlight=False,
    )
