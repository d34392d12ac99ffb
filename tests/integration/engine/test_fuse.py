"""Fusing: mlx-lm's own bits, several adapters exactly, and what does not fit refused by name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import fuse as mlx_lm_fuse
from mlx_lm.utils import load, make_shards

from espalier.messages import OutputEvent
from espalier.states import Reason
from tests.integration.engine.child import Child
from tests.integration.engine.folders import (
    as_hugging_face_has_it,
    make_adapter,
    make_experts,
    make_model,
    quantized,
    same_bits,
    tensors,
)
from worker.engine import shards
from worker.engine.adapters import open_adapter
from worker.engine.fuse import writing
from worker.engine.fuse.merging import Part

ChildRunner = Callable[..., Child]
Bases = dict[str, Path]

#: What every layer of a dense block has, the embedding, and the output.
_ALL = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
_WIDE: dict[str, Any] = {"keys": [*_ALL, "model.embed_tokens", "lm_head"]}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """One model plain, in bfloat16, and at the bits that matter; one of experts."""
    home = tmp_path_factory.mktemp("bases")
    plain = make_model(home / "plain")
    return {
        "plain": plain,
        "bfloat16": make_model(home / "bfloat16", dtype="bfloat16", arch="qwen2"),
        "4-bit": quantized(plain, home / "q4", 4, 32, "affine"),
        "8-bit": quantized(plain, home / "q8", 8, 64, "affine"),
        "mxfp4": quantized(plain, home / "mxfp4", 4, 32, "mxfp4"),
        "mixed": quantized(
            plain, home / "mixed", 4, 64, "affine", v_proj={"bits": 8, "group_size": 32}
        ),
        "experts": (experts := make_experts(home / "experts", plain)),
        "4-bit experts": quantized(experts, home / "experts-q4", 4, 32, "affine"),
    }


def parts_of(*adapters: tuple[Path, float]) -> list[Part]:
    return [Part(path.name, open_adapter(path), weight) for path, weight in adapters]


def upstream(
    monkeypatch: pytest.MonkeyPatch, base: Path, adapter: Path, out: Path, dequantize: bool
) -> Path:
    """What plain ``mlx_lm.fuse`` writes."""
    flags = ["--model", base, "--adapter-path", adapter, "--save-path", out]
    more = ["--dequantize"] if dequantize else []
    monkeypatch.setattr(sys, "argv", ["mlx_lm.fuse", *map(str, flags), *more])
    mlx_lm_fuse.main()
    return out


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("base", ["plain", "bfloat16", "4-bit", "8-bit", "mxfp4", "mixed"])
def test_the_bits_are_those_of_mlx_lm(
    bases: Bases,
    base: str,
    kind: str,
    dequantize: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # mlx-lm has no DoRA for a quantized embedding.
    wide: dict[str, Any] = {} if kind == "dora" and base != "plain" else _WIDE
    adapter = make_adapter(tmp_path / "adapter", bases[base], kind, **wide)
    theirs = upstream(monkeypatch, bases[base], adapter, tmp_path / "theirs", dequantize)
    writing.write(
        writing.plan(bases[base], parts_of((adapter, 1.0))), tmp_path / "ours", dequantize
    )
    assert same_bits(tmp_path / "ours", theirs)
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.json", "README.md"):
        assert (tmp_path / "ours" / name).read_bytes() == (theirs / name).read_bytes(), name
    assert not same_bits(tmp_path / "ours", bases[base])


@pytest.mark.parametrize("base", ["experts", "4-bit experts"])
def test_experts_are_fused_as_mlx_lm_does(
    bases: Bases, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases[base])
    assert any("switch_mlp" in name for name in mx.load(str(adapter / "adapters.safetensors")))
    theirs = upstream(monkeypatch, bases[base], adapter, tmp_path / "theirs", False)
    writing.write(writing.plan(bases[base], parts_of((adapter, 1.0))), tmp_path / "ours", False)
    assert same_bits(tmp_path / "ours", theirs)


def test_what_a_model_is_renamed_to_while_loading_streams_too(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = as_hugging_face_has_it(bases["experts"], tmp_path / "loose")
    assert any("experts.3" in name for name in tensors(loose))
    adapter = make_adapter(tmp_path / "adapter", bases["experts"])
    theirs = upstream(monkeypatch, loose, adapter, tmp_path / "theirs", False)
    writing.write(writing.plan(loose, parts_of((adapter, 1.0))), tmp_path / "ours", False)
    assert same_bits(tmp_path / "ours", theirs)


def test_a_full_fine_tune_replaces_weights(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = make_adapter(tmp_path / "adapter", bases["bfloat16"], "full")
    theirs = upstream(monkeypatch, bases["bfloat16"], tuned, tmp_path / "theirs", False)
    writing.write(writing.plan(bases["bfloat16"], parts_of((tuned, 1.0))), tmp_path / "ours", False)
    assert same_bits(tmp_path / "ours", theirs)


def test_shards_are_cut_where_mlx_lm_cuts_them(bases: Bases, tmp_path: Path) -> None:
    weights = tensors(bases["plain"])
    big = {name: mx.broadcast_to(mx.zeros(()), (1 << 28, 3)) for name in ("a.weight", "b.weight")}
    assert shards.group_bytes(weights)["lm_head"] == 320 * 64 * 4
    cut = make_shards({**big, **weights})  # 3 GiB each, and none of it is computed
    assert [next(iter(shard)) for shard in cut] == ["a.weight", "b.weight"]


def test_a_tensor_is_written_as_mlx_reads_it(tmp_path: Path) -> None:
    values = {
        "bfloat16": mx.array([[1.5, -2.0], [3.0, 4.0]], mx.bfloat16).T,  # not in its own order
        "float16": mx.arange(3, dtype=mx.float16),
        "uint32": mx.array([2**32 - 1], mx.uint32),
        "bool": mx.array([True, False, True]),
        "scalar": mx.array(7, mx.int8),
        "empty": mx.zeros((0, 4)),
    }
    shards.write_tensors(tmp_path / "x.safetensors", dict(values))
    read = mx.load(str(tmp_path / "x.safetensors"))
    assert read.keys() == values.keys()
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        assert mx.array_equal(read[name], value), name


# --- Several ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, float]]:
    """Three adapters of the plain model that have little in common, and their weights."""
    home = tmp_path_factory.mktemp("adapters")
    wide = make_adapter(home / "wide", bases["plain"], seed=1, **_WIDE)
    deep = make_adapter(home / "deep", bases["plain"], seed=2, num_layers=1, rank=2, scale=8.0)
    thin = make_adapter(
        home / "thin", bases["plain"], seed=3, rank=1, keys=["self_attn.q_proj", "mlp.up_proj"]
    )
    return [(wide, 0.5), (deep, 1.0), (thin, -0.25)]


def summed(base: Path, adapters: list[tuple[Path, float]]) -> dict[str, Any]:
    """Base + Σ weight · scale · A B, layer by layer, in numpy and in double precision."""
    found = {name: np.array(value, np.float64) for name, value in tensors(base).items()}
    for path, weight in adapters:
        scale = json.loads((path / "adapter_config.json").read_text())["lora_parameters"]["scale"]
        read = mx.load(str(path / "adapters.safetensors"))
        pairs = {name: np.array(value, np.float64) for name, value in read.items()}
        for name in (n.removesuffix(".lora_a") for n in pairs if n.endswith(".lora_a")):
            delta = weight * scale * (pairs[f"{name}.lora_a"] @ pairs[f"{name}.lora_b"])
            found[f"{name}.weight"] += delta if "embed" in name else delta.T
    return found


def test_several_adapters_are_their_weighted_sum(
    bases: Bases, adapters: list[tuple[Path, float]], tmp_path: Path
) -> None:
    writing.write(writing.plan(bases["plain"], parts_of(*adapters)), tmp_path / "ours", False)
    expected = summed(bases["plain"], adapters)
    before = tensors(bases["plain"])
    for name, value in tensors(tmp_path / "ours").items():
        np.testing.assert_allclose(np.array(value), expected[name], atol=2e-6, err_msg=name)
        assert mx.array_equal(value, before[name]) == name.endswith("norm.weight"), name


@pytest.mark.parametrize("base", ["plain", "4-bit experts"])
def test_several_as_one_adapter_say_what_they_say_together(
    bases: Bases,
    base: str,
    adapters: list[tuple[Path, float]],
    dataset: Path,
    inside: ChildRunner,
    tmp_path: Path,
) -> None:
    given = adapters
    if base != "plain":
        paths = [
            make_adapter(tmp_path / f"a{rank}", bases[base], seed=rank, rank=rank)
            for rank in (2, 3)
        ]
        given = [(paths[0], 0.7), (paths[1], 0.3)]
    roles = [f"adapter_{number}" if number > 1 else "adapter" for number in range(1, 4)]
    inputs = {"model": bases[base], "data": dataset} | dict(
        zip(roles, (path for path, _ in given), strict=False)
    )
    named = [f"team/{path.name}={weight}" for path, weight in given]
    run = inside("fuse", {"adapters": named, "output": "adapter", "test_batches": 1}, inputs)
    assert run.done.state == "succeeded"
    assert run.proofs()["max_kl"].value < 1e-5
    told = [row[0] for row in run.tables()["fuse"].rows]
    each = [f"base + team/{path.name} × {weight:g}".removesuffix(" × 1") for path, weight in given]
    assert told == ["base", *each, f"base + {len(given)} adapters", "fused"]
    merged = run.output("adapter")
    ranks = {
        a.shape[1]
        for n, a in mx.load(str(merged / "adapters.safetensors")).items()
        if n.endswith("lora_a")
    }
    assert ranks == {7 if base == "plain" else 5}
    # mlx-lm's own loader takes it, and what it then says is what the fused model says.
    tokens = mx.array([[1, 5, 9, 200, 7]])
    writing.write(writing.plan(bases[base], parts_of(*given)), tmp_path / "fused", True)
    said = [
        load(str(bases[base]), adapter_path=str(merged))[0](tokens),
        load(str(tmp_path / "fused"))[0](tokens),
    ]
    np.testing.assert_allclose(np.array(said[0]), np.array(said[1]), atol=2e-4)


def test_a_weight_of_one_adapter_is_a_share_of_it(
    bases: Bases, adapters: list[tuple[Path, float]], dataset: Path, inside: ChildRunner
) -> None:
    path = adapters[0][0]
    inputs = {"model": bases["plain"], "adapter": path, "data": dataset}
    run = inside("fuse", {"adapters": ["team/wide=0.5"], "test_batches": 1}, inputs)
    assert run.proofs()["max_kl"].value < 1e-5
    expected = summed(bases["plain"], [(path, 0.5)])
    for name, value in tensors(run.output("model")).items():
        np.testing.assert_allclose(np.array(value), expected[name], atol=2e-6, err_msg=name)
    assert run.all(OutputEvent)[0].meta["fused_from"]["adapters"][0]["weight"] == 0.5


# --- Refused ------------------------------------------------------------------------------


def test_dora_is_not_added_to_others(
    bases: Bases, adapters: list[tuple[Path, float]], inside: ChildRunner, tmp_path: Path
) -> None:
    dora = make_adapter(tmp_path / "dora", bases["plain"], "dora")
    inputs = {"model": bases["plain"], "adapter": adapters[0][0], "adapter_2": dora}
    run = inside("fuse", {"adapters": "team/wide, team/dora@v2=0.5"}, inputs)
    assert run.error.code is Reason.BAD_INPUT
    assert "team/dora@v2 is a DoRA" in run.error.message
    assert "Fuse it alone first" in (run.error.hint or "")


def test_an_adapter_for_another_architecture_is_refused_naming_what_differs(
    bases: Bases, inside: ChildRunner, tmp_path: Path
) -> None:
    wider = make_model(tmp_path / "wider", hidden=128, layers=3)
    adapter = make_adapter(tmp_path / "adapter", wider)
    run = inside("fuse", {}, {"model": bases["plain"], "adapter": adapter})
    assert run.error.code is Reason.BAD_INPUT
    assert "14 of its 42 tensors are not in the model" in run.error.message
    assert "model.layers.2." in run.error.message
    assert "28 of its 42 tensors are of another size" in run.error.message
    run = inside("fuse", {"adapters": "team/a=2"}, {"model": bases["plain"], "adapter": adapter})
    assert run.error.code is Reason.BAD_INPUT
    assert "not in the model" in run.error.message
    experts = make_adapter(tmp_path / "moe", bases["experts"])
    run = inside("fuse", {}, {"model": bases["plain"], "adapter": experts})
    assert "mlp.switch_mlp" in run.error.message


def test_adapters_of_two_models_are_refused(
    bases: Bases, adapters: list[tuple[Path, float]], inside: ChildRunner, tmp_path: Path
) -> None:
    wider = make_model(tmp_path / "wider", hidden=128)
    adapter = make_adapter(tmp_path / "adapter", wider)
    inputs = {"model": bases["plain"], "adapter": adapters[0][0], "adapter_2": adapter}
    run = inside("fuse", {"adapters": "team/a, team/b"}, inputs)
    assert run.error.code is Reason.BAD_INPUT
    assert "The adapters are for different models" in run.error.message


def test_weights_of_the_base_are_no_part_of_an_adapter(
    bases: Bases, inside: ChildRunner, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases["plain"])
    path = adapter / "adapters.safetensors"
    more = {"model.layers.0.self_attn.q_proj.linear.weight": mx.zeros((64, 64))}
    mx.save_safetensors(str(path), {**mx.load(str(path)), **more})
    run = inside("fuse", {}, {"model": bases["plain"], "adapter": adapter})
    assert "no part of one: model.layers.0.self_attn.q_proj.linear.weight" in run.error.message


def test_dora_on_bits_that_mlx_lm_cannot_take_is_refused(
    bases: Bases, inside: ChildRunner, tmp_path: Path
) -> None:
    base = quantized(bases["plain"], tmp_path / "q6", 6, 64, "affine")
    adapter = make_adapter(tmp_path / "adapter", bases["plain"], "dora")
    run = inside("fuse", {}, {"model": base, "adapter": adapter})
    assert run.error.code is Reason.BAD_INPUT
    assert "DoRA" in run.error.message
    assert "6 bits" in run.error.message
