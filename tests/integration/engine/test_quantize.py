"""Quantized models: as mlx-lm would write them, measured, recommended, and refused."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.convert import convert
from mlx_lm.quant import awq, dwq, dynamic_quant, gptq
from mlx_lm.utils import load
from tqdm import tqdm  # type: ignore[import-untyped]

from espalier.messages import Event, OutputEvent, ProgressEvent
from espalier.specs.recipes import AWQ_TYPES, Recipe
from espalier.states import Reason
from tests.integration.engine import folders
from tests.integration.engine.child import Child, Run, run_child, run_inside
from tests.integration.engine.test_fuse_quantize import generate
from worker.engine import data, tiny
from worker.engine.quantize.calibration import Calibration

ChildRunner = Callable[..., Child]
FEW = {"test_batches": 2}


def rows(run: Child) -> dict[str, dict[str, Any]]:
    """The table of variants by name and column."""
    table = run.tables()["variants"]
    return {str(row[0]): dict(zip(table.columns, row, strict=True)) for row in table.rows}


def config_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


def tensors(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        found |= mx.load(str(path))
    return found


def same(first: Path, second: Path) -> bool:
    """Are all tensors of two models the same bits?"""
    a, b = tensors(first), tensors(second)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and mx.array_equal(a[name], b[name]).item() for name in a
    )


def test_quantized_loads_in_mlx_lm_and_is_measured(quantized: Child) -> None:
    assert quantized.done.state == "succeeded"
    directory = quantized.output("model")
    assert config_of(directory)["quantization"]["bits"] == 4
    before, after = rows(quantized).values()
    assert before["variant"] == "original"
    assert before["bits_per_weight"] == 32.0
    assert 4 < after["bits_per_weight"] < 6.5
    assert after["size_bytes"] * 4 < before["size_bytes"]
    assert after["recommended"] is True
    assert 0 < after["mean_kl"] < after["max_kl"]
    speeds = ("prompt_tokens_per_second", "tokens_per_second", "peak_memory_bytes")
    assert min(row[name] for row in (before, after) for name in speeds) > 0
    assert quantized.proofs()["perplexity_increase"].limit == 0.25
    assert quantized.proofs()["mean_kl"].ok is None
    assert generate("--model", directory)


#: A variant as a word, and what ``mlx_lm.convert`` is called with for the same.
PLAIN: dict[str, dict[str, Any]] = {
    "2:128": {"quantize": True, "q_bits": 2, "q_group_size": 128},
    "3:32": {"quantize": True, "q_bits": 3, "q_group_size": 32},
    "4": {"quantize": True, "q_bits": 4, "q_group_size": 64},
    "5": {"quantize": True, "q_bits": 5, "q_group_size": 64},
    "6:32": {"quantize": True, "q_bits": 6, "q_group_size": 32},
    "8": {"quantize": True, "q_bits": 8, "q_group_size": 64},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "nvfp4": {"quantize": True, "q_mode": "nvfp4"},
    "mxfp8": {"quantize": True, "q_mode": "mxfp8"},
    **{
        mixed: {"quantize": True, "quant_predicate": mixed, "q_bits": 4, "q_group_size": 64}
        for mixed in ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
    },
    "float16": {"dtype": "float16"},
    "4:bfloat16": {"quantize": True, "q_bits": 4, "q_group_size": 64, "dtype": "bfloat16"},
}


def test_every_mode_is_mlx_lms_to_the_bit(
    inputs: dict[str, Path], inside: ChildRunner, tmp_path: Path
) -> None:
    variants = [*(word for word in PLAIN if word != "4:bfloat16"), "4:bfloat16:name=q4-bf16"]
    spec = {"variants": variants, "test_batches": 1, "max_perplexity_increase": 100.0}
    run = inside("quantize", spec, inputs)
    assert run.done.state == "succeeded"
    outputs = [Path(event.directory) for event in run.all(OutputEvent)]
    assert len(outputs) == len(PLAIN)
    for directory, (word, settings) in zip(outputs, PLAIN.items(), strict=True):
        theirs = tmp_path / "theirs" / directory.name
        convert(str(inputs["model"]), str(theirs), **settings)
        assert same(directory, theirs), word
        # mlx-lm leaves the old dtype's name in the config of a model that it converted.
        changed = {"torch_dtype": settings["dtype"]} if "dtype" in settings else {}
        assert config_of(directory) == config_of(theirs) | changed, word
        assert (directory / "tokenizer.json").read_bytes() == (
            theirs / "tokenizer.json"
        ).read_bytes()


def _close(patch: pytest.MonkeyPatch) -> None:
    """mlx-lm's own ways to calibration text end here."""

    def fetch(*_: Any, **__: Any) -> None:
        raise AssertionError("calibration text was fetched")

    patch.setattr("urllib.request.urlretrieve", fetch)
    for module in (awq, gptq, dynamic_quant, dwq):
        patch.setattr(module, "load_data", fetch)


SMALL: dict[str, Any] = {
    "num_samples": 16,
    "sequence_length": 64,
    "n_grid": 4,
    "learning_rate": 2e-4,
}


@pytest.fixture(scope="module")
def learned(
    model: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Child]:
    """One job of all methods, with mlx-lm's own ways to a text closed."""
    variants = ["3:32", "4:32", "awq:4:32", "gptq:4:32", "dwq:3:32", "dynamic_quant:high_bits=8"]
    inputs = {"model": model, "data": dataset, "calibration": dataset}
    spec = FEW | SMALL | {"variants": variants, "calibration": "team/text"}
    with pytest.MonkeyPatch.context() as patch:
        _close(patch)
        yield run_inside(tmp_path_factory.mktemp("learned"), "quantize", spec, inputs)


def test_learned_methods_learn_from_text_of_the_store(learned: Child) -> None:
    assert learned.done.state == "succeeded"
    assert "Calibrated on train.jsonl of the calibration set (120 rows)" in learned.notices
    found = rows(learned)
    assert found["gptq-q4-g32"]["mean_kl"] < found["q4-g32"]["mean_kl"]
    assert found["dwq-q3-g32"]["mean_kl"] < found["q3-g32"]["mean_kl"]
    assert found["awq-q4-g32"]["mean_kl"] < 2 * found["q4-g32"]["mean_kl"]
    assert abs(found["dynamic-5bpw"]["bits_per_weight"] - 5) < 0.7
    bits = config_of(learned.output("dynamic-5bpw"))["quantization"]
    assert {each["bits"] for each in bits.values() if isinstance(each, dict)} == {8}
    for role in ("awq-q4-g32", "gptq-q4-g32", "dwq-q3-g32"):
        quantized, _ = load(str(learned.output(role)))
        assert type(quantized.layers[0].mlp.up_proj).__name__ == "QuantizedLinear"


def test_the_model_types_awq_knows_are_mlx_lms() -> None:
    assert set(AWQ_TYPES) == set(awq.AWQ_MODEL_CONFIGS)


#: A method's module in mlx-lm, its flags for the recipe, and the role of ours.
COMMANDS = {
    "awq-q4-g32": (awq, ["--group-size", "32", "--n-grid", "4"]),
    "gptq-q4-g32": (gptq, ["--group-size", "32"]),
    "dynamic-5bpw": (dynamic_quant, ["--high-bits", "8"]),
}


@pytest.mark.parametrize("role", COMMANDS)
def test_on_the_same_text_it_is_what_mlx_lms_command_makes(
    role: str,
    learned: Child,
    model: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, flags = COMMANDS[role]
    train = data.open_split(dataset, "train", load(str(model))[1])
    tokens = Calibration(train, "", 0).pieces(Recipe(method="gptq", **SMALL))
    monkeypatch.setattr(module, "load_data", lambda *_, **__: tokens)
    monkeypatch.setattr(module, "tqdm", tqdm)
    monkeypatch.chdir(tmp_path)
    paths = ["--model", str(model), "--mlx-path", str(tmp_path / "theirs")]
    monkeypatch.setattr(sys, "argv", ["mlx_lm", *paths, *flags])
    module.main()
    assert same(learned.output(role), tmp_path / "theirs")
    assert config_of(learned.output(role)) == config_of(tmp_path / "theirs")


def test_dwq_keeps_what_the_original_says_on_disk(
    dataset: Path, inside: ChildRunner, tmp_path: Path
) -> None:
    """A vocabulary beyond mlx-lm's 1024 targets a token; the measurement keeps the top as well."""
    tiny.make(tmp_path / "wide", steps=0, layers=1, vocabulary=1100)
    spec = FEW | SMALL | {"method": "dwq", "q_bits": 4, "q_group_size": 32, "batch_size": 2}
    run = inside("quantize", spec, {"model": tmp_path / "wide", "data": dataset})
    assert run.done.state == "succeeded"
    assert "of the 1024 likeliest tokens" in run.proofs()["mean_kl"].detail
    assert not (run.directory / "scratch" / "learning").exists()


def test_the_smallest_within_the_limits_is_recommended(
    inputs: dict[str, Path], inside: ChildRunner
) -> None:
    spec = FEW | {"variants": "8, 6, 4:32", "max_size": "130000", "max_perplexity_increase": 0.1}
    run = inside("quantize", spec, inputs)
    assert run.done.state == "succeeded"
    marked = {name: row["recommended"] for name, row in rows(run).items()}
    assert marked == {"original": False, "q8": False, "q6": False, "q4-g32": True}
    assert "q8 is not published: size_bytes" in run.notices
    assert "q4-g32 is recommended: the smallest within 130 kB and 10.00%" in run.notices
    assert [event.role for event in run.all(OutputEvent)] == ["q6", "q4-g32"]
    proofs = run.proofs()
    assert proofs["q6: size_bytes"].ok is True
    assert proofs["q8: size_bytes"].ok is None
    meta = {event.role: event.meta for event in run.all(OutputEvent)}
    assert meta["q4-g32"]["recommended"] is True
    assert meta["q6"]["recommended"] is False
    assert meta["q6"]["recipe"]["q_bits"] == 6
    assert not (run.directory / "output" / "q8").exists()


def test_only_the_recommended_is_published_if_asked(
    inputs: dict[str, Path], inside: ChildRunner
) -> None:
    spec = FEW | {"variants": "8, 2", "publish": "recommended", "max_size": 10**9}
    run = inside("quantize", spec, inputs)
    (output,) = run.all(OutputEvent)
    assert output.role == "model"
    assert config_of(Path(output.directory))["quantization"]["bits"] == 8
    assert output.meta["recommendation"].startswith("q8 is recommended: the closest")


def test_when_none_holds_the_nearest_is_named(inputs: dict[str, Path], inside: ChildRunner) -> None:
    run = inside("quantize", FEW | {"variants": "8, 4", "max_size": "80000"}, inputs)
    assert run.error.code is Reason.PROOF_FAILED
    assert "None of 2 variants holds its limits; q4 comes nearest" in run.error.message
    assert len(rows(run)) == 3
    assert not run.all(OutputEvent)


def test_a_quantized_model_is_quantized_again_only_when_asked(
    quantized: Child, dataset: Path, inside: ChildRunner, tmp_path: Path
) -> None:
    inputs = {"model": quantized.output("model"), "data": dataset}
    refused = inside("quantize", FEW, inputs)
    assert refused.error.code is Reason.BAD_INPUT
    assert "4 bits, group 32" in refused.error.message
    assert "requantize" in (refused.error.hint or "")
    spec = FEW | {"requantize": True, "variants": ["8:32", "method=none:name=unpacked"]}
    run = inside("quantize", spec, inputs)
    assert run.done.state == "succeeded"
    assert "unpacked and quantized again" in run.notices
    found = rows(run)
    assert found["original"]["bits_per_weight"] < 7
    assert found["unpacked"]["bits_per_weight"] == 32
    assert found["unpacked"]["max_kl"] < 1e-4
    assert found["q8-g32"]["mean_kl"] < 0.01
    assert config_of(run.output("q8-g32"))["quantization"]["bits"] == 8
    convert(str(quantized.output("model")), str(tmp_path / "theirs"), dequantize=True)
    assert same(run.output("unpacked"), tmp_path / "theirs")
    assert "quantization" not in config_of(run.output("unpacked"))


def test_too_few_bits_are_refused(inputs: dict[str, Path], inside: ChildRunner) -> None:
    spec = {"q_bits": 2, "q_group_size": 64, "max_perplexity_increase": 0.001, "test_batches": 2}
    run = inside("quantize", spec, inputs)
    assert run.error.code is Reason.PROOF_FAILED
    assert "perplexity_increase" in run.error.message
    assert rows(run)["q2"]["recommended"] is False


def test_layers_no_group_divides_are_named(
    dataset: Path, inside: ChildRunner, tmp_path: Path
) -> None:
    tiny.make(tmp_path / "narrow", steps=0, hidden=96, layers=1)
    inputs = {"model": tmp_path / "narrow", "data": dataset}
    spec = {"q_bits": 8, "q_group_size": 64, "test_batches": 1, "dtype": "float16"}
    run = inside("quantize", spec, inputs)
    assert "layers keep their precision" in run.notices
    assert run.done.state == "succeeded"
    assert config_of(run.output("model"))["torch_dtype"] == "float16"
    learned = inside("quantize", spec | {"q_bits": 4, "method": "gptq"}, inputs)
    assert learned.error.code is Reason.BAD_INPUT
    assert "q_group_size 64" in learned.error.message
    tiny.make(tmp_path / "thin", steps=0, hidden=16, layers=1)
    thin = inputs | {"model": tmp_path / "thin"}
    run = inside("quantize", spec, thin)
    assert run.error.code is Reason.BAD_INPUT
    assert "q_group_size 64" in run.error.message
    # One of several that cannot be is left out; all of them fail the job.
    run = inside("quantize", {"variants": "8, float16", "test_batches": 1}, thin)
    assert run.done.state == "succeeded"
    assert "q8 is left out" in run.notices


def test_what_a_method_cannot_do_is_refused_before_work(
    inputs: dict[str, Path], inside: ChildRunner, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(inputs["model"], other)
    (other / "config.json").write_text(
        json.dumps(config_of(other) | {"model_type": "phi3", "architectures": []})
    )
    run = inside("quantize", {"method": "awq"}, inputs | {"model": other})
    assert run.error.code is Reason.BAD_INPUT
    assert "'phi3'" in run.error.message
    assert "llama, llava, ministral3" in run.error.message
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    shutil.copy(inputs["data"] / "test.jsonl", held_out)
    run = inside("quantize", {"method": "gptq"}, inputs | {"data": held_out})
    assert run.error.code is Reason.BAD_INPUT
    assert "no train" in run.error.message
    spec = {"method": "gptq", "sequence_length": 100_000}
    run = inside("quantize", spec, inputs)
    assert run.error.code is Reason.BAD_INPUT
    assert "sequence_length 100000" in run.error.message


def test_a_method_of_mlx_lms_own_obeys_a_cancel_order(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    steps: list[int] = []

    def on_event(run: Run, event: Event) -> None:
        if isinstance(event, ProgressEvent) and event.unit == "steps":
            steps.append(event.done)
            run.order("cancel")

    spec = {"method": "dwq", "sequence_length": 64, "batch_size": 1, "test_batches": 1}
    run = run_child(tmp_path, "quantize", spec, inputs, on_event=on_event)
    assert steps
    assert run.done.state == "cancelled"
    assert not run.all(OutputEvent)


def test_a_floating_point_format_is_unpacked_to_the_models_own_type(
    dataset: Path, inside: ChildRunner, tmp_path: Path
) -> None:
    packed = folders.quantized(
        folders.make_model(tmp_path / "plain"), tmp_path / "packed", 8, 32, "mxfp8"
    )
    inputs = {"model": packed, "data": dataset}
    spec = {"requantize": True, "method": "none", "test_batches": 1}
    run = inside("quantize", spec, inputs)
    assert run.done.state == "succeeded"
    assert "(8 bits, group 32, mxfp8)" in run.notices
    assert {str(value.dtype) for value in tensors(run.output("model")).values()} == {
        "mlx.core.float32"
    }
    assert rows(run)["plain"]["max_kl"] < 1e-5
