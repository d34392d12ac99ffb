"""From a filled-in form to a request, and from a refusal back to the fields it is about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from werkzeug.datastructures import MultiDict

from espalier.errors import EspalierError, InvalidInput
from espalier.specs import SPECS, JobRequest, PipelineRequest, from_mlx_lm, parse
from espalier.states import Kind
from espalier.yamlfile import parse_yaml
from web.pages.fields import FormField, collect, fields_of, spread
from web.pages.groups import Group, grouped

#: The steps that may follow a train job, in their order.
FOLLOWING = (Kind.EVAL, Kind.FUSE, Kind.QUANTIZE, Kind.EXPORT)
#: The keys that people change first; the rest is folded.
FIRST = {
    Kind.TRAIN: "model data fine_tune_type iters batch_size learning_rate num_layers"
    " lora_parameters.rank max_seq_length packing early_stopping_patience",
    Kind.EVAL: "model adapter data split sweep compare_base metrics",
    Kind.FUSE: "model adapter dequantize",
    Kind.QUANTIZE: "model method q_bits q_group_size variants max_size max_perplexity_increase",
    Kind.EXPORT: "model format type",
}
#: What a later step takes from those before it.
PIPED = frozenset({"model", "data", "adapter"})
#: What surrounds a spec, as fields of the request.
AROUND = ("priority", "max_attempts", "note")


@dataclass(frozen=True, slots=True)
class StepForm:
    """The fields of one step: those shown, and those folded, in groups."""

    kind: Kind
    first: tuple[FormField, ...]
    rest: tuple[Group, ...]
    ticked: bool
    unfold: bool


def read(form: MultiDict[str, str]) -> JobRequest | PipelineRequest:
    """Return what the form asks for. Raises InvalidInput."""
    kind = parse(Kind, form.get("kind", "train"))
    steps = following(form) if kind is Kind.TRAIN else []
    around: dict[str, Any] = {
        key: form[key].strip() for key in ("project", *AROUND) if form.get(key, "").strip()
    }
    name = form.get("name", "").strip() or None
    if not steps:
        spec = {"kind": kind, **collect(SPECS[kind], kind, form)}
        return parse(JobRequest, {"spec": spec, "name": name, **around})
    found = [
        {"step": step, "spec": _spec(step, form, steps), "name": name if step == kind else None}
        for step in (kind, *steps)
    ]
    return parse(PipelineRequest, {"steps": found, **around})


def filled(form: MultiDict[str, str]) -> MultiDict[str, str]:
    """Return the form with what its ``yaml`` says filled in: a spec, or mlx_lm.lora's config.

    Raises InvalidInput for what is not YAML (line and column) and for keys that no field has.
    """
    kind = parse(Kind, form.get("kind", "train"))
    given = parse_yaml(form.get("yaml", ""), "The YAML")
    given = from_mlx_lm(given) if kind is Kind.TRAIN else given
    if given.pop("kind", kind) != kind:
        raise InvalidInput(f"The YAML is of another kind of job than this form: {kind}.")
    unknown = sorted(given.keys() - SPECS[kind].model_fields.keys())
    if unknown:
        raise InvalidInput(
            f"{', '.join(unknown)}: no {kind} job has such a key.",
            errors=[{"loc": ["yaml"], "msg": f"unknown: {', '.join(unknown)}"}],
        )
    typed = MultiDict(form)
    typed.pop("yaml", None)
    for name, value in spread(kind, given).items():
        typed[name] = value
    for key, value in given.items():
        if value is False:
            typed.pop(f"{kind}.{key}", None)
    return typed


def following(form: MultiDict[str, str]) -> list[Kind]:
    """Return the ticked steps in their order."""
    return [step for step in FOLLOWING if step in form.getlist("steps")]


def _spec(step: Kind, form: Mapping[str, str], steps: Sequence[Kind]) -> dict[str, Any]:
    """Return a step's input, wired to the steps before it."""
    spec = {"kind": step, **collect(SPECS[step], step, form)}
    if step in (Kind.EVAL, Kind.FUSE):
        spec |= {"model": form.get("train.model", "").strip(), "adapter": "step:train"}
    if step is Kind.EVAL:
        spec["data"] = form.get("train.data", "").strip()
    if step in (Kind.QUANTIZE, Kind.EXPORT):
        if Kind.FUSE not in steps:
            raise InvalidInput(
                f"To {step} what was trained, its adapter has to be fused first: tick fuse too.",
                errors=[{"loc": ["fuse"], "msg": f"{step} needs the fused model"}],
            )
        spec["model"] = "step:fuse"
    return spec


def faults(error: EspalierError | None, form: MultiDict[str, str]) -> dict[str, str]:
    """Return field name → what is wrong with it."""
    if error is None:
        return {}
    kind = form.get("kind", "train")
    order = [kind, *following(form)]
    return {_field(fault["loc"], order): fault["msg"] for fault in error.errors}


def _field(loc: Sequence[Any], order: Sequence[str]) -> str:
    match list(loc):
        case ["spec", *path] if path:
            return ".".join([order[0], *map(str, path)])
        case ["steps", int(index), "spec", *path] if path:
            wired = order[0] if path[0] in ("model", "data") else order[index]
            return ".".join([wired, *map(str, path)])
        case ["steps", int(), "name"]:
            return "name"
        case path:
            return ".".join(map(str, path))


def step_forms(form: MultiDict[str, str], wrong: Mapping[str, str]) -> list[StepForm]:
    """Return the form's steps: the kind asked for and, after a train job, those that may follow."""
    kind = parse(Kind, form.get("kind", "train"))
    kinds = [kind, *FOLLOWING] if kind is Kind.TRAIN else [kind]
    ticked = following(form)
    return [_step(each, form, wrong, each is kind or each in ticked, kind) for each in kinds]


def _step(
    step: Kind, form: Mapping[str, str], wrong: Mapping[str, str], ticked: bool, kind: Kind
) -> StepForm:
    every = fields_of(SPECS[step], step, form, wrong)
    if step is not kind:  # a later step takes its inputs from those before it
        every = [f for f in every if f.name.removeprefix(f"{step}.") not in PIPED]
    names = {f"{step}.{key}" for key in FIRST[step].split()}
    order = [f"{step}.{key}" for key in FIRST[step].split()]
    first = sorted((f for f in every if f.name in names), key=lambda f: order.index(f.name))
    rest = tuple(f for f in every if f.name not in names)
    unfold = any(f.error for f in rest)
    return StepForm(step, tuple(first), grouped(step, rest), ticked, unfold)


def cloned(document: Mapping[str, Any]) -> MultiDict[str, str]:
    """Return a job as the form that would submit it again."""
    typed = spread(document["kind"], document["spec"])
    typed |= {"kind": document["kind"], "name": document["name"], "note": document["note"]}
    typed |= {"project": document["project"]}
    typed |= {key: str(document[key]) for key in ("priority", "max_attempts")}
    return MultiDict(typed)
