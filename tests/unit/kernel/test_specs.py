"""One validation for form, API, CLI and YAML: mlx-lm's defaults, and refusals that help."""

import pytest

from espalier.errors import InvalidInput
from espalier.specs import (
    EvalSpec,
    JobRequest,
    PipelineRequest,
    QuantizeSpec,
    TrainSpec,
    from_mlx_lm,
    parse,
)
from tests.unit.kernel.mlx_lm_defaults import LORA_DEFAULTS

TRAIN = {"kind": "train", "model": "team/base", "data": "team/wikisql"}


def _refusal(spec: dict[str, object]) -> InvalidInput:
    with pytest.raises(InvalidInput) as refusal:
        parse(JobRequest, {"spec": spec})
    return refusal.value


def test_defaults_are_mlx_lms_own() -> None:
    spec = TrainSpec(model="team/base", data="team/wikisql").model_dump()
    for key, value in LORA_DEFAULTS.items():
        if key in spec and key not in ("model", "data", "optimizer_config"):
            shown = spec[key]
            assert (
                {k: v for k, v in shown.items() if v is not None} == value
                if isinstance(value, dict)
                else shown == value
            ), key


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("batch_size", 0, "greater than or equal to 1"),
        ("iters", -5, "greater than or equal to 1"),
        ("learning_rate", 0.0, "greater than 0"),
        ("learning_rate", float("nan"), "finite"),
        ("num_layers", 0, "-1 for all"),
        ("val_batches", -2, "greater than or equal to -1"),
        ("fine_tune_type", "qlora", "'lora', 'dora' or 'full'"),
        ("optimizer", "lion", "'adam'"),
        ("model", "../../etc", "project"),
        ("lora_parameters", {"rank": 0}, "greater than or equal to 1"),
        ("batchsize", 4, "not permitted"),
    ],
)
def test_out_of_range_names_field_value_and_limit(key: str, value: object, limit: str) -> None:
    error = _refusal({**TRAIN, key: value})
    assert error.status == 422
    found = error.errors[0]
    assert limit in found["msg"]
    if key != "num_layers":
        assert key in found["loc"]
    if not isinstance(value, dict):
        assert repr(value) in found["msg"] or key == "num_layers"


def test_all_faults_are_named_at_once() -> None:
    error = _refusal({**TRAIN, "batch_size": 0, "iters": 0, "rank": 8})
    assert [e["loc"][-1] for e in error.errors] == ["batch_size", "iters", "rank"]
    assert "2 more" in error.detail


def test_a_spec_cannot_be_changed() -> None:
    spec = TrainSpec(model="team/base", data="team/wikisql")
    with pytest.raises(ValueError, match="frozen"):
        spec.iters = 5  # type: ignore[misc]


def test_seven_bits_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="2, 3, 4, 5, 6 or 8"):
        QuantizeSpec(model="team/base", q_bits=7)


def test_a_sweep_needs_an_adapter() -> None:
    with pytest.raises(ValueError, match="name the adapter"):
        EvalSpec(model="team/base", data="team/wikisql", sweep=True)


def test_an_output_has_no_version() -> None:
    with pytest.raises(InvalidInput, match="without @"):
        parse(JobRequest, {"spec": TRAIN, "name": "team/x@v2"})


def test_a_pipeline_refers_to_earlier_steps_only() -> None:
    fuse = {"kind": "fuse", "model": "team/base", "adapter": "step:train"}
    with pytest.raises(InvalidInput, match="no earlier step is called 'train'"):
        parse(PipelineRequest, {"steps": [{"step": "fuse", "spec": fuse}]})


def test_an_mlx_lm_config_is_taken_as_it_is() -> None:
    config = {
        **LORA_DEFAULTS,
        "train": True,
        "model": "team/base",
        "data": "team/wikisql",
        "lora_parameters": {"rank": 16, "dropout": 0.1, "scale": 10.0},
        "lr_schedule": {"name": "cosine_decay", "warmup": 10, "arguments": [1e-5, 100]},
    }
    spec = parse(TrainSpec, from_mlx_lm(config))
    assert spec.lora_parameters.rank == 16
    assert spec.lr_schedule is not None
    assert spec.lr_schedule.warmup == 10


def test_remote_code_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not run here"):
        from_mlx_lm({"trust_remote_code": True})
