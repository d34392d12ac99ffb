"""``espalier train|eval|quantize|fuse|export|pipeline``: submit, and wait when asked to."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from espalier import mlxlm
from espalier.cli.common import JsonFlag, connect, print_json
from espalier.cli.explain import ExplainFlag, explain
from espalier.cli.flags import gather, kebab, request_flags, spec_flags
from espalier.cli.follow import follow, outcome, view
from espalier.cli.show import Job, announce, summary
from espalier.client import Client
from espalier.errors import InvalidInput, NotFound
from espalier.specs import JobRequest, PipelineRequest, TrainSpec, from_mlx_lm, parse
from espalier.states import Kind
from espalier.yamlfile import read_yaml

WaitFlag = Annotated[
    bool, typer.Option("--wait", help="Follow to the end; exit 0, 1 (failed) or 3 (cancelled).")
]
ConfigFlag = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="YAML as mlx_lm.lora --config reads it; flags win."),
]
_HELP = {
    Kind.TRAIN: "Fine-tune a model, as mlx_lm.lora --train does.",
    Kind.EVAL: "Measure test loss and perplexity.",
    Kind.QUANTIZE: "Fewer bits per weight, as mlx_lm.convert -q does.",
    Kind.FUSE: "Merge an adapter into its base model, as mlx_lm.fuse does.",
    Kind.EXPORT: "Make a GGUF or safetensors file that other programs load.",
}
#: What a directory in place of a key's reference is pushed with.
_PUSH = {
    "data": "dataset",
    "model": "model",
    "adapter": "adapter",
    "resume_adapter_file": "adapter",
}
#: How a path of this machine begins, and how a file in an adapter's folder ends.
_PATHS, _FILES = (".", "/", "~"), (".safetensors", ".jsonl")
ByHandFlag = Annotated[
    bool,
    typer.Option(
        "--by-hand", help="Print the mlx_lm.lora command that does the same; submit nothing."
    ),
]


def register(app: typer.Typer) -> None:
    for kind in Kind:
        app.command(kind.value, help=_HELP[kind])(_command(kind))
    app.command("pipeline")(pipeline)


def _command(kind: Kind) -> Callable[..., None]:
    def run(
        *,
        config: Path | None = None,
        wait: bool = False,
        as_json: bool = False,
        explained: bool = False,
        by_hand: bool = False,
        **given: Any,
    ) -> None:
        request = build(kind, read_yaml(config) if config else {}, given)
        if by_hand and isinstance(request.spec, TrainSpec):
            print(mlxlm.by_hand(request.spec))
            return
        with connect() as client:
            if explained:
                explain(client, _body(request), as_json=as_json)
                return
            job = _post(client, request)
            _finish(client, [job], job, wait=wait, as_json=as_json)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [
        inspect.Parameter("config", keyword, default=None, annotation=ConfigFlag),
        inspect.Parameter("wait", keyword, default=False, annotation=WaitFlag),
        inspect.Parameter("as_json", keyword, default=False, annotation=JsonFlag),
        inspect.Parameter("explained", keyword, default=False, annotation=ExplainFlag),
    ]
    if kind is Kind.TRAIN:
        own.append(inspect.Parameter("by_hand", keyword, default=False, annotation=ByHandFlag))
    parameters = [*spec_flags(kind), *request_flags(), *own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def build(kind: Kind, config: Mapping[str, Any], given: Mapping[str, Any]) -> JobRequest:
    """Return the request that defaults < ``config`` < flags make; raise InvalidInput."""
    if config.get("kind", kind) != kind:
        raise InvalidInput(
            f"The config is of kind {config['kind']!r}, and this is `espalier {kind}`."
        )
    spec = from_mlx_lm({k: v for k, v in config.items() if k != "kind"})
    for key, value in gather(kind, given).items():
        spec[key] = {**spec.get(key, {}), **value} if isinstance(value, dict) else value
    around = {
        name: given[name]
        for name in JobRequest.model_fields
        if name != "spec" and given.get(name) is not None
    }
    _refuse_paths(spec)
    try:
        return parse(JobRequest, {"spec": {"kind": kind.value, **spec}, **around})
    except InvalidInput as error:
        raise _by_flags(error) from error


def pipeline(
    file: Annotated[Path, typer.Argument(help="YAML with `steps`, each a step name and a spec.")],
    project: Annotated[str | None, typer.Option(help="Instead of the file's.")] = None,
    priority: Annotated[int | None, typer.Option(help="Instead of the file's.")] = None,
    wait: WaitFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit jobs whose inputs are each other's outputs (`step:NAME`), all or none."""
    given = {"project": project, "priority": priority}
    request = parse(
        PipelineRequest, read_yaml(file) | {k: v for k, v in given.items() if v is not None}
    )
    with connect() as client:
        answer = client.post("/api/v1/pipelines", _body(request))
        _finish(client, answer["jobs"], answer, wait=wait, as_json=as_json)


def _body(request: BaseModel) -> Any:
    return request.model_dump(mode="json", exclude_unset=True)


def _post(client: Client, request: JobRequest) -> Job:
    try:
        job: Job = client.post("/api/v1/jobs", _body(request))
    except NotFound as error:
        for role, ref in request.spec.refs().items():
            if Path(ref).is_dir():
                raise _push_first(role, ref) from error
        raise
    return job


def _finish(
    client: Client, jobs: list[Job], document: dict[str, Any], *, wait: bool, as_json: bool
) -> None:
    """Print what was submitted or, with ``wait``, what became of it; exit with its code."""
    if not wait:
        print_json(document) if as_json else announce(jobs, client.url)
        return
    ended = follow(client, [job["id"] for job in jobs], view())
    if as_json:
        print_json({**document, "jobs": ended} if "jobs" in document else ended[0])
    else:
        summary(ended)
    raise typer.Exit(outcome(ended))


# --- Faults in the words that were typed --------------------------------------------------


def _refuse_paths(spec: Mapping[str, Any]) -> None:
    given = [(role, spec.get(role)) for role in _PUSH]
    listed = spec.get("hf_dataset") or ()
    given += [("data", item.get("path")) for item in listed if isinstance(item, Mapping)]
    for role, value in given:
        if isinstance(value, str) and (value.startswith(_PATHS) or value.endswith(_FILES)):
            raise _push_first(role, value)


def _push_first(role: str, path: str) -> InvalidInput:
    """A directory of this machine where a reference is needed: say what to push."""
    flag = kebab(role)
    folder = str(Path(path).parent) if path.endswith(_FILES) else path
    return InvalidInput(
        f"{flag} {path} is a path on this machine; a job runs on another and needs a reference.",
        hint=f"Run `espalier {_PUSH[role]} push {folder} PROJECT/NAME`, then give"
        f" `{flag} PROJECT/NAME`.",
        errors=[{"loc": [flag], "msg": "a path, not a reference"}],
    )


def _by_flags(error: InvalidInput) -> InvalidInput:
    """The same fault, its fields called by the flags that set them."""
    faults = [{**fault, "loc": [_flag(fault["loc"])]} for fault in error.errors]
    if not faults:
        return error
    first = faults[0]
    where = f"{first['loc'][0]}: " if first["loc"][0] else ""
    return InvalidInput(f"{where}{first['msg']}", hint=error.hint, errors=faults)


def _flag(loc: list[str | int]) -> str:
    inside = [str(part) for part in loc if part != "spec"]
    if len(inside) == 1 or inside[:1] == ["lora_parameters"]:
        return kebab(inside[-1])
    return ".".join(inside)
