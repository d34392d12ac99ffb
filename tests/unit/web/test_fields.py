"""Forms are made from the specs: every key can be typed, and what was typed comes back."""

import pytest
from werkzeug.datastructures import MultiDict

from espalier.errors import InvalidInput
from espalier.specs import SPECS, JobRequest, PipelineRequest, TrainSpec, parse
from espalier.states import Kind
from web.pages.fields import FormField, collect, fields_of, spread
from web.pages.groups import GROUPS
from web.pages.submission import FOLLOWING, StepForm, cloned, faults, filled, read, step_forms

FILLED = {
    "train.kind": "train",
    "train.model": "team/m",
    "train.data": "team/d",
    "train.iters": "20",
    "train.mask_prompt": "on",
    "train.lora_parameters.rank": "16",
    "train.lora_parameters.keys": "self_attn.q_proj, self_attn.v_proj",
    "train.lr_schedule.name": "cosine_decay",
    "train.lr_schedule.arguments": "1e-5, 100",
    "train.optimizer_config": '{"adamw": {"weight_decay": 0.1}}',
}


@pytest.mark.parametrize("kind", list(Kind))
def test_every_key_of_a_spec_is_a_field(kind: Kind) -> None:
    names = {field.name.split(".")[1] for field in fields_of(SPECS[kind], kind, {}, {})}
    assert names == set(SPECS[kind].model_fields) - {"kind"}


def test_a_field_says_default_limits_and_text() -> None:
    fields = {field.name: field for field in fields_of(TrainSpec, "train", {}, {})}
    rate = fields["train.learning_rate"]
    assert (rate.default, rate.limits) == ("1e-05", "above 0, at most 10")
    assert fields["train.fine_tune_type"].choices == ("lora", "dora", "full")
    assert fields["train.model"].required
    assert fields["train.batch_size"].limits == "1 to 4096"


def test_what_was_typed_becomes_the_spec() -> None:
    spec = parse(TrainSpec, collect(TrainSpec, "train", FILLED))
    assert (spec.iters, spec.mask_prompt, spec.test) == (20, True, False)
    assert spec.lora_parameters.keys == ("self_attn.q_proj", "self_attn.v_proj")
    assert spec.lr_schedule
    assert spec.lr_schedule.arguments == (1e-5, 100.0)
    assert spec.optimizer_config == {"adamw": {"weight_decay": 0.1}}


def test_a_spec_as_typed_is_the_spec_again() -> None:
    spec = parse(TrainSpec, collect(TrainSpec, "train", FILLED))
    typed = spread("train", spec.model_dump(mode="json"))
    assert parse(TrainSpec, collect(TrainSpec, "train", typed)) == spec


def test_a_box_that_is_on_by_default_can_be_cleared() -> None:
    fresh = {f.name: f.value for f in fields_of(SPECS[Kind.EVAL], "eval", {}, {})}
    cleared = {
        f.name: f.value for f in fields_of(SPECS[Kind.EVAL], "eval", {"eval.kind": "eval"}, {})
    }
    assert (fresh["eval.compare_base"], cleared["eval.compare_base"]) == ("on", "")


def test_unreadable_json_names_its_field() -> None:
    with pytest.raises(InvalidInput) as refusal:
        collect(TrainSpec, "train", FILLED | {"train.optimizer_config": "{adamw"})
    assert refusal.value.errors[0]["loc"] == ["train.optimizer_config"]


# --- The whole form -----------------------------------------------------------------------


def every(step: StepForm) -> list[FormField]:
    """Return all fields of a step, shown or folded."""
    return [*step.first, *(field for _, fields in step.rest for field in fields)]


def form(*steps: Kind, **more: str) -> MultiDict[str, str]:
    pairs = [("kind", "train"), *FILLED.items(), *(("steps", step) for step in steps)]
    return MultiDict([*pairs, *((k.replace("__", "."), v) for k, v in more.items())])


def test_one_job() -> None:
    request = read(form(name="sql", priority="5"))
    assert isinstance(request, JobRequest)
    assert (request.name, request.priority, request.spec.kind) == ("sql", 5, "train")


def test_a_pipeline_is_wired_to_its_own_steps() -> None:
    request = read(form(*FOLLOWING, name="sql", note="try", export__type="q8_0"))
    assert isinstance(request, PipelineRequest)
    train, evaluate, fuse, quantize, export = (step.spec for step in request.steps)
    assert train.kind == "train"
    assert evaluate.refs() == {"model": "team/m", "data": "team/d", "adapter": "step:train"}
    assert fuse.refs() == {"model": "team/m", "adapter": "step:train"}
    assert quantize.refs() == export.refs() == {"model": "step:fuse"}
    assert (request.note, request.steps[0].name, request.steps[1].name) == ("try", "sql", None)


def test_exporting_needs_fusing() -> None:
    wanted = form(Kind.EXPORT)
    with pytest.raises(InvalidInput) as refusal:
        read(wanted)
    assert faults(refusal.value, wanted) == {"fuse": "export needs the fused model"}


def test_a_fault_finds_its_field() -> None:
    for wanted, name in (
        (form(train__batch_size="0"), "train.batch_size"),
        (form(Kind.EVAL, eval__batch_size="0"), "eval.batch_size"),
        (form(Kind.FUSE, fuse__max_kl="-1"), "fuse.max_kl"),
        (form(train__lora_parameters__dropout="2"), "train.lora_parameters.dropout"),
        (form(name="no spaces here"), "name"),
        (form(Kind.EVAL, name="no spaces here"), "name"),
        (form(priority="1000"), "priority"),
    ):
        with pytest.raises(InvalidInput) as refusal:
            read(wanted)
        found = faults(refusal.value, wanted)
        assert list(found) == [name]
        shown = [f for step in step_forms(wanted, found) for f in every(step)]
        assert [f.name for f in shown if f.error] == ([name] if "." in name else [])


def test_a_later_step_does_not_ask_for_what_it_is_given() -> None:
    for step in step_forms(form(), {})[1:]:
        assert not {f.name.split(".")[1] for f in every(step)} & {"model", "data", "adapter"}


def test_every_setting_has_its_place_and_none_is_shown_twice() -> None:
    for kind in Kind:
        (step, *_) = step_forms(MultiDict({"kind": kind}), {})
        shown = [f.name for f in every(step)]
        assert sorted(shown) == sorted(f.name for f in fields_of(SPECS[kind], kind, {}, {}))
        assert "More" not in [title for title, _ in step.rest], shown
        named = {key for _, keys in GROUPS[kind] for key in keys.split()}
        assert named <= set(SPECS[kind].model_fields) | {"grad_checkpoint", "clear_cache_threshold"}


def test_yaml_fills_the_form_in() -> None:
    config = "train: true\nbatch_size: 2\nmask_prompt: false\nlora_parameters: {rank: 4}"
    wanted = filled(form(yaml=config))
    spec = read(wanted)
    assert isinstance(spec, JobRequest)
    assert isinstance(spec.spec, TrainSpec)
    assert (spec.spec.batch_size, spec.spec.iters, spec.spec.mask_prompt) == (2, 20, False)
    assert spec.spec.lora_parameters.rank == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "line 1"), ("lora_rank: 3", "lora_rank"), ("kind: eval", "another kind")],
)
def test_yaml_that_fits_no_form_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        filled(form(yaml=text))


def test_a_clone_is_the_same_request() -> None:
    request = read(form(name="team/sql", note="again"))
    assert isinstance(request, JobRequest)
    job = request.model_dump(mode="json") | {"kind": "train", "project": "team"}
    assert read(cloned(job)) == request.model_copy(update={"project": "team"})
