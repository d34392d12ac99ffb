"""Export: llama.cpp reads the file and says what MLX says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from espalier.states import Reason
from espalier.textsql import texts
from tests.integration.engine.child import Child
from worker.engine import tiny

ChildRunner = Callable[..., Child]


def make_decisive(directory: Path, arch: str = "llama", **config: Any) -> Path:
    """A random model whose next token is seldom a matter of rounding: its weights are large."""
    tiny.make(directory, arch, steps=0)
    path = directory / "model.safetensors"
    weights = {k: v * 8 if v.ndim > 1 else v for k, v in mx.load(str(path)).items()}
    mx.eval(weights)
    path.unlink()
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})
    change_config(directory, **config)
    return directory


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_gguf_gives_mlxs_greedy_tokens(
    kind: str, fused: Child, dataset: Path, child: ChildRunner
) -> None:
    inputs = {"model": fused.output("model"), "data": dataset}
    run = child("export", {"type": kind}, inputs)
    assert run.done.state == "succeeded"
    match = run.proofs()["token_match"]
    assert match.value == 1.0, run.log
    assert run.proofs()["tokenizer_match"].value == 1.0
    path = run.output("gguf") / f"model-{kind}.gguf"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    fields = gguf.GGUFReader(path).fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert "im_start" in fields["tokenizer.chat_template"].contents()


@pytest.mark.parametrize(
    ("arch", "kind", "config"),
    [
        ("qwen2", "f16", {}),
        ("qwen3", "q8_0", {}),
        ("llama", "bf16", {"model_type": "mistral"}),
        (
            "llama",
            "f32",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
    ],
    ids=["qwen2", "qwen3", "mistral", "llama3-rope"],
)
def test_architectures(
    arch: str,
    kind: str,
    config: dict[str, Any],
    dataset: Path,
    inside: ChildRunner,
    tmp_path: Path,
) -> None:
    model = make_decisive(tmp_path / "model", arch, **config)
    run = inside("export", {"type": kind}, {"model": model, "data": dataset})
    assert run.done.state == "succeeded"
    match = run.proofs()["token_match"]
    # Eight bits of mantissa move a random model's tokens now and then; sixteen must not.
    assert match.value >= (0.95 if kind in ("bf16", "q8_0") else 1.0), match.detail
    assert match.limit


def test_four_bits_are_recorded_and_a_limit_refuses_them(
    fused: Child, dataset: Path, inside: ChildRunner
) -> None:
    inputs = {"model": fused.output("model"), "data": dataset}
    run = inside("export", {"type": "q4_0"}, inputs)
    assert run.proofs()["token_match"].ok is None
    assert "output.weight" in run.notices
    strict = {"type": "q4_1", "min_token_match": 1.0, "proof_tokens": 48}
    run = inside("export", strict, inputs)
    assert run.error.code is Reason.PROOF_FAILED
    assert "token_match" in run.error.message
    assert not (run.proofs()["token_match"].ok)


def test_a_quantized_model_is_dequantized_first(
    quantized: Child, dataset: Path, inside: ChildRunner
) -> None:
    inputs = {"model": quantized.output("model"), "data": dataset}
    run = inside("export", {"type": "f16"}, inputs)
    assert "dequantized first" in run.notices
    assert run.proofs()["token_match"].ok
    run = inside("export", {"format": "safetensors", "type": "bf16"}, inputs)
    assert run.proofs()["perplexity_difference"].ok
    weights = mx.load(str(run.output("model") / "model.safetensors"))
    assert {str(value.dtype) for value in weights.values()} == {"mlx.core.bfloat16"}


def _sentencepiece(directory: Path) -> None:
    """Put a tokenizer of Llama 2's kind into a model: ▁ for space, bytes as a fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *alphabet], show_progress=False
    )
    source = texts(5)
    tokenizer.train_from_iterator((next(source) for _ in range(100)), trainer)
    rules = json.loads(tokenizer.to_str())
    # The trainer had to be told of the bytes as special tokens; as such no text would use them.
    rules["added_tokens"] = [t for t in rules["added_tokens"] if t["content"] not in alphabet]
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).unlink()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)


def test_a_sentencepiece_tokenizer(dataset: Path, inside: ChildRunner, tmp_path: Path) -> None:
    model = make_decisive(tmp_path / "model", bos_token_id=1)
    _sentencepiece(model)
    run = inside("export", {"type": "f16"}, {"model": model, "data": dataset})
    assert run.done.state == "succeeded", run.log
    assert run.proofs()["tokenizer_match"].value == 1.0
    fields = gguf.GGUFReader(run.output("gguf") / "model-f16.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True


def test_what_gguf_does_not_know_is_refused(
    model: Path, dataset: Path, inside: ChildRunner, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    path = copy / "tokenizer.json"
    rules = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated"}
    byte_level = rules["pre_tokenizer"] | {"use_regex": False}
    rules["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split | {"invert": False}, byte_level],
    }
    path.write_text(json.dumps(rules))
    run = inside("export", {}, {"model": copy, "data": dataset})
    assert run.error.code is Reason.BAD_INPUT
    assert "[aeiou]+" in run.error.message
    change_config(copy, model_type="gemma")
    run = inside("export", {}, {"model": copy, "data": dataset})
    assert run.error.code is Reason.BAD_INPUT


def test_a_wrong_pre_tokenizer_is_caught_by_the_proof(
    model: Path,
    dataset: Path,
    inside: ChildRunner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.engine.export.gguf_tokenizer.find_pre", lambda rules: "qwen2")
    run = inside("export", {}, {"model": model, "data": dataset})
    assert run.error.code is Reason.PROOF_FAILED
    assert "tokenizer_match" in run.error.message
