"""The memory predictor: what must hold of any model, and that no config makes it stumble."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier import geometry
from espalier.fitting import first_fit
from espalier.memory import Estimate, estimate, made
from espalier.specs import SPECS, Spec, TrainSpec, parse
from espalier.states import Kind

#: Llama 3.2 1B's own.
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 16,
    "vocab_size": 128_256,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
GIB = 1 << 30


def spec_of(kind: Kind = Kind.TRAIN, **more: Any) -> Spec:
    refs = {"model": "a/b"}
    if kind in (Kind.TRAIN, Kind.EVAL):
        refs["data"] = "a/c"
    if kind == Kind.FUSE:
        refs["adapter"] = "a/d"
    found: Spec = parse(SPECS[kind], {**refs, **more})
    return found


def needs(config: dict[str, Any] = CONFIG, kind: Kind = Kind.TRAIN, **more: Any) -> Estimate:
    found = estimate(config, spec_of(kind, **more))
    assert found.known, found.why
    return found


def test_a_known_model_is_weighed_as_its_files_are() -> None:
    assert geometry.read(CONFIG).weights == pytest.approx(2_471_645_608, rel=0.001)
    packed = {**CONFIG, "quantization": {"bits": 4, "group_size": 64}}
    assert geometry.read(packed).weights == pytest.approx(695_283_921, rel=0.001)


@pytest.mark.parametrize("kind", list(Kind))
def test_parts_add_up_and_hold_the_weights(kind: Kind) -> None:
    found = needs(kind=kind)
    assert sum(found.parts.values()) == found.total
    assert min(found.parts.values()) > 0
    assert found.parts["weights"] == geometry.read(CONFIG).weights
    assert found.engine == found.total - found.parts["reserve"]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("batch_size", (1, 2, 8)),
        ("max_seq_length", (64, 512, 4096)),
        ("num_layers", (1, 4, 16)),
        ("micro_batch_size", (1, 2, 4)),
    ],
)
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
@pytest.mark.parametrize("again", [False, True])
def test_more_needs_more(key: str, values: tuple[int, ...], method: str, again: bool) -> None:
    totals = [
        needs(fine_tune_type=method, grad_checkpoint=again, **{key: value}).total
        for value in values
    ]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


def test_what_saves_memory_is_seen_to() -> None:
    plain = needs().total
    assert needs(grad_checkpoint=True).total < plain
    assert needs({**CONFIG, "quantization": {"bits": 4, "group_size": 64}}).total < plain
    short: dict[str, Any] = {"batch_size": 1, "max_seq_length": 32}
    assert needs(fine_tune_type="full", **short).total > needs(**short).total
    assert needs(optimizer="adam").total > needs(optimizer="adafactor").total
    assert needs(lora_parameters={"rank": 64}).total > plain
    assert estimate(CONFIG, spec_of(), longest=100).total < plain
    assert estimate(CONFIG, spec_of(), weights=10 * GIB).total > 9 * GIB + plain - 3 * GIB


def test_experts_weigh_whole_and_work_by_two() -> None:
    moe = {**CONFIG, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    assert needs(moe).parts["weights"] > 4 * needs().parts["weights"]
    assert needs(moe).parts["activations"] < 4 * needs().parts["activations"]
    assert not estimate(moe, spec_of(fine_tune_type="dora")).known


def test_what_no_engine_runs_is_not_estimated() -> None:
    packed = {**CONFIG, "quantization": {"bits": 4, "group_size": 64}}
    found = estimate(packed, spec_of(fine_tune_type="full"), weights=7)
    assert (found.known, found.total, dict(found.parts)) == (False, 7, {"weights": 7})
    assert "4-bit" in found.why


def test_an_unknown_architecture_says_so() -> None:
    found = estimate({**CONFIG, "model_type": "mamba"}, spec_of())
    assert not found.known
    assert "'mamba'" in found.why
    assert "llama" in found.why
    assert estimate(None, spec_of()).why == "the model's config.json has not been read"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(geometry.KEYS), JSON), st.sampled_from(list(Kind)))
def test_no_config_makes_it_stumble(changes: dict[str, Any], kind: Kind) -> None:
    for config in ({**CONFIG, **changes}, changes):
        found = estimate(config, spec_of(kind))
        assert found.total >= 0
        assert found.known == (not found.why)
        kept = geometry.kept(config)
        assert len(json.dumps(kept, allow_nan=False)) < 4000
        assert estimate(kept, spec_of(kind)).known == found.known, "keeping it changes nothing"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", -1),
        ("hidden_size", 0),
        ("vocab_size", "many"),
        ("num_hidden_layers", 10**30),
        ("num_attention_heads", 2.5),
        ("num_attention_heads", True),
        ("intermediate_size", None),
        ("torch_dtype", "int4"),
    ],
)
def test_an_impossible_number_is_named_with_its_key(key: str, value: Any) -> None:
    found = estimate({**CONFIG, key: value}, spec_of())
    assert not found.known
    assert key in found.why
    assert value is None or repr(value)[:20] in found.why


def test_the_first_change_that_helps_is_the_one_that_costs_nothing() -> None:
    spec = spec_of(batch_size=8, num_layers=-1)
    whole = estimate(CONFIG, spec).total
    found = first_fit(CONFIG, spec, None, whole - 1)
    assert found is not None
    assert (found.setting, found.after) == ("grad_checkpoint", True)
    already = spec.model_copy(update={"grad_checkpoint": True})
    found = first_fit(CONFIG, already, None, estimate(CONFIG, already).total - 1)
    assert found is not None
    assert (found.setting, found.before, found.after) == ("micro_batch_size", 8, 4)
    assert first_fit(CONFIG, spec, None, 1000) is None


def test_every_promise_is_kept() -> None:
    """For any limit: what the change is said to need is what the changed job needs, and fits."""
    spec = spec_of(batch_size=8, max_seq_length=4096, num_layers=-1)
    settings = set()
    for limit in range(GIB, 60 * GIB, GIB):
        change = first_fit(CONFIG, spec, None, limit)
        if change is not None and change.setting != "q_bits":
            after = spec.model_copy(update={change.setting: change.after})
            assert estimate(CONFIG, after).total == change.needs <= limit
            settings.add(change.setting)
    assert len(settings) > 1, settings


def test_what_a_job_makes_is_known_from_what_it_is_made_of() -> None:
    quantized = made(CONFIG, spec_of(Kind.QUANTIZE, q_bits=8))
    assert geometry.read(quantized).bits == 8
    fused = made(quantized, spec_of(Kind.FUSE, dequantize=True))
    assert geometry.read(fused) == geometry.read(CONFIG)
    exported = made(quantized, spec_of(Kind.EXPORT, format="safetensors", type="f32"))
    assert (geometry.read(exported).bits, geometry.read(exported).width) == (0, 4)
    assert isinstance(spec_of(), TrainSpec)
