"""``espalier diff``: two versions side by side."""

from typing import Annotated, Any

import typer
from rich.markup import escape

from espalier.cli.common import JsonFlag, connect, plain, print_json, size_text, stdout, table
from espalier.refs import ArtifactRef, parse_artifact

_DEFAULT_PROJECT = "team"
#: Tensors that are listed without --json: those that differ most.
_TENSORS = 40

_Ref = Annotated[str, typer.Argument(metavar="REF", help="project/name, @v3 or @alias.")]


def register(app: typer.Typer) -> None:
    app.command("diff")(diff)


def diff(before: _Ref, after: _Ref, as_json: JsonFlag = False) -> None:
    """Compare two versions: files, configs, tensors by name, metrics, card."""
    refs = [str(_named(ref)) for ref in (before, after)]
    with connect() as client:
        found = client.get("/api/v1/compare", {"from": refs[0], "to": refs[1]})
    if as_json:
        print_json(found)
    else:
        _print(found)


def _named(ref: str) -> ArtifactRef:
    return parse_artifact(ref, project=_DEFAULT_PROJECT)


def _print(found: dict[str, Any]) -> None:
    out = stdout()
    out.print(f"[bold]{found['before']}[/] → [bold]{found['after']}[/]")
    out.print(f"{found['files_same']} files and {found['tensors_same']} tensors are the same.")
    files = [(f["change"], f["path"], *map(size_text, _both(f))) for f in found["files"]]
    _section("files", ("", "file", "before", "after"), files)
    keys = [(k["file"], k["key"], *_both(k)) for k in found["config"]]
    _section("config", ("file", "key", "before", "after"), keys)
    tensors = [_tensor(tensor) for tensor in found["tensors"][:_TENSORS]]
    title = f"tensors, {_TENSORS} of {len(found['tensors'])}"
    columns = ("", "tensor", "before", "after", "‖Δ‖", "‖Δ‖/‖before‖", "max |Δ|")
    _section("tensors" if len(found["tensors"]) <= _TENSORS else title, columns, tensors)
    metrics = [(m["name"], *map(_number, _both(m))) for m in found["metrics"]]
    _section("metrics", ("metric", "before", "after"), metrics)
    if found["card"]:
        out.print("\n[bold]card[/]")
        out.print(escape(plain(found["card"])))
    for remark in found["remarks"]:
        out.print(f"\n{escape(plain(remark))}")


def _section(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    if rows:
        stdout().print(f"\n[bold]{title}[/]")
        table(columns, rows)


def _both(change: dict[str, Any]) -> tuple[Any, Any]:
    return change["before"], change["after"]


def _tensor(found: dict[str, Any]) -> tuple[str | None, ...]:
    figures = (_number(found[name]) for name in ("l2", "relative", "max_abs"))
    return found["change"], found["name"], *_both(found), *figures


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
