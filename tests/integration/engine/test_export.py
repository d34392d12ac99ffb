"""Export: llama.cpp reads the file and says what MLX says."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from espalier.messages import OutputEvent
from espalier.states import Reason
from espalier.textsql import texts
from tests.integration.engine.child import Child
from worker.engine import tiny
from worker.engine.export import card, engines, gguf_reader, job, llama_api, proving
from worker.engine.export.gguf_reader import Answer, Reading

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


def test_gguf_gives_mlxs_greedy_tokens(fused: Child, dataset: Path, child: ChildRunner) -> None:
    inputs = {"model": fused.output("model"), "data": dataset}
    run = child("export", {"type": "f16"}, inputs)
    assert run.done.state == "succeeded"
    match = run.proofs()["token_match"]
    assert match.value == 1.0, run.log
    assert "over 10 prompts" in match.detail
    assert run.proofs()["tokenizer_match"].value == 1.0
    assert abs(run.proofs()["perplexity_difference"].value) < 1e-3
    path = run.output("gguf") / "model-f16.gguf"
    found = {p.name for p in path.parent.iterdir()}
    assert found == {path.name, "README.md", "Modelfile", "prompts.jsonl"}
    fields = gguf.GGUFReader(path).fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert "im_start" in fields["tokenizer.chat_template"].contents()
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    samples = [json.loads(line) for line in (path.parent / "prompts.jsonl").open()]
    assert [s["mlx"] for s in samples] == [s["llama_cpp"] for s in samples]


def test_several_types_of_one_job_in_both_engines(
    fused: Child, dataset: Path, inside: ChildRunner
) -> None:
    inputs = {"model": fused.output("model"), "data": dataset}
    types = ["f32", "q8_0", "q4_1", "q4_0"]
    run = inside("export", {"types": types, "side_by_side": True, "proof_prompts": 3}, inputs)
    assert run.done.state == "succeeded", run.log
    table = run.tables()["engines"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    both = [(row["engine"], row["format"]) for row in rows]
    assert both == [("mlx", "f32"), ("llama.cpp", "f32")] + [
        (engine, kind) for kind in types[1:] for engine in ("llama.cpp", "mlx")
    ]
    by = dict(zip(both, rows, strict=True))
    for row in rows:
        assert row["tokens_per_second"] > 0
        assert row["prompt_tokens_per_second"] > 0
    sizes = [by["llama.cpp", kind]["size_bytes"] for kind in types]
    assert sizes == sorted(sizes, reverse=True)
    for kind in types:  # the same weights, read by two programs
        one, other = (by[engine, kind]["perplexity"] for engine in ("mlx", "llama.cpp"))
        assert one == pytest.approx(other, rel=5e-3)
    assert {p.name for p in run.output("gguf").glob("*.gguf")} == {f"model-{t}.gguf" for t in types}
    assert run.proofs()["token_match_f32"].ok
    assert run.proofs()["token_match_q4_0"].ok is None


def test_k_types_are_ggmls(
    dataset: Path, inside: ChildRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_ROWS", 4)
    model = tmp_path / "model"
    tiny.make(model, "qwen3", steps=0, hidden=256, layers=3)
    types = ["q8_0", "q6_k", "q4_k_m"]
    run = inside("export", {"types": types, "proof_prompts": 2, "proof_tokens": 4},
                 {"model": model, "data": dataset})  # fmt: skip
    assert run.done.state == "succeeded", run.log
    folder = run.output("gguf")
    sizes = [(folder / f"model-{kind}.gguf").stat().st_size for kind in types]
    assert sizes == sorted(sizes, reverse=True)
    reader = gguf.GGUFReader(folder / "model-q4_k_m.gguf")
    found = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    # As llama_model_quantize mixes them: the head, and every third layer's values and downs, wider.
    assert found["output.weight"] == "Q6_K"
    assert [found[f"blk.{i}.ffn_down.weight"] for i in range(3)] == ["Q4_K", "Q4_K", "Q6_K"]
    assert found["blk.0.attn_norm.weight"] == "F32"
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert "im_start" in reader.fields["tokenizer.chat_template"].contents()
    values = {row[1]: row[3] for row in run.tables()["engines"].rows if row[0] == "llama.cpp"}
    assert values["q6_k"] == pytest.approx(values["q8_0"], rel=0.01)


def test_without_llama_cpps_functions_there_is_no_perplexity_and_all_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = Reading(path="none.gguf", texts=[], prompts=[], ends=[], rows=[[1, 2, 3]])
    answer = Answer(tokenized=[[1]], mismatches=[])
    broken = gguf_reader.with_loss(reading, answer)
    assert (broken.tokenized, broken.loss) == ([[1]], None)
    assert "cannot load none.gguf" in broken.untold
    monkeypatch.setitem(llama_api._FUNCTIONS, "llama_of_another_year", (None, ()))
    llama_api.library.cache_clear()
    untold = gguf_reader.with_loss(reading, answer)
    llama_api.library.cache_clear()
    assert untold.loss is None
    assert "llama_of_another_year" in untold.untold


def test_types_that_do_not_fit_are_refused(model: Path, dataset: Path, inside: ChildRunner) -> None:
    run = inside("export", {"type": "q4_k_m"}, {"model": model, "data": dataset})
    assert run.error.code is Reason.BAD_INPUT
    assert "256" in run.error.message
    assert "q8_0" in (run.error.hint or "")


def test_a_limit_that_was_asked_for_refuses(
    fused: Child, dataset: Path, inside: ChildRunner
) -> None:
    inputs = {"model": fused.output("model"), "data": dataset}
    strict = {"type": "q4_1", "min_token_match": 1.0, "proof_tokens": 48}
    run = inside("export", strict, inputs)
    assert "output.weight" in run.notices
    assert run.error.code is Reason.PROOF_FAILED
    assert "token_match" in run.error.message
    assert not (run.proofs()["token_match"].ok)


def test_below_a_default_limit_a_file_is_marked_not_hidden(
    fused: Child, dataset: Path, inside: ChildRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(proving.TOKEN_MATCH, "q4_0", 1.0)
    inputs = {"model": fused.output("model"), "data": dataset}
    run = inside("export", {"type": "q4_0", "proof_tokens": 48}, inputs)
    assert run.done.state == "succeeded"
    assert run.proofs()["token_match"].ok is False
    (event,) = run.all(OutputEvent)
    assert "token_match" in event.meta["marked"]
    assert "Published, and marked" in run.notices
    assert "Marked" in (run.output("gguf") / "README.md").read_text()


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
    changed = tmp_path / "copy"
    shutil.copytree(model, changed)
    path = changed / "tokenizer.json"
    rules = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated"}
    byte_level = rules["pre_tokenizer"] | {"use_regex": False}
    rules["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split | {"invert": False}, byte_level],
    }
    path.write_text(json.dumps(rules))
    run = inside("export", {}, {"model": changed, "data": dataset})
    assert run.error.code is Reason.BAD_INPUT
    assert "[aeiou]+" in run.error.message
    assert "pre_tokenizer" in (run.error.hint or "")
    change_config(changed, model_type="cohere")
    run = inside("export", {}, {"model": changed, "data": dataset})
    assert run.error.code is Reason.BAD_INPUT
    assert "cohere" in run.error.message
    assert "writer llama.cpp" in (run.error.hint or "")


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


#: Stands where llama.cpp's converter is installed: it writes what it is told to, by our own
#: writer, and tells where it was asked from.
_CONVERTER = """
import json, os, sys
from pathlib import Path
from worker.engine.export import gguf_arch, gguf_tokenizer, gguf_writer
from worker.engine.models import load_model
model, _, out, _, kind = sys.argv[1:]
loaded = load_model(Path(model))
source = gguf_arch.Source.of(loaded)
words = gguf_tokenizer.read_vocabulary(Path(model), loaded.tokenizer, source.args.vocab_size)
about = gguf_writer.About("converted")
gguf_writer.write(source, words, about, Path(out), kind, lambda *_: None)
Path(__file__).with_name("env.json").write_text(json.dumps(dict(os.environ)))
"""


def test_llama_cpps_own_converter_is_asked_and_its_file_proved(
    model: Path, dataset: Path, inside: ChildRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": model, "data": dataset}
    spec = {"writer": "llama.cpp", "type": "f16", "proof_prompts": 2, "proof_tokens": 4}
    monkeypatch.delenv(job.CONVERTER, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    run = inside("export", spec, inputs)
    assert run.error.code is Reason.BAD_INPUT
    assert job.CONVERTER in (run.error.hint or "")

    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(_CONVERTER)
    monkeypatch.setenv(job.CONVERTER, f"'{sys.executable}' '{script}'")
    run = inside("export", spec, inputs)
    assert run.proofs()["token_match"].ok, run.log
    path = run.output("gguf") / "model-f16.gguf"
    assert gguf.GGUFReader(path).fields["general.name"].contents() == "converted"
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["https_proxy"].startswith("http://127.0.0.1")

    script.write_text("import sys; sys.exit('this model is unheard of')")
    run = inside("export", spec, inputs)
    assert run.error.code is Reason.BAD_INPUT
    assert "this model is unheard of" in run.error.message


def test_the_card_of_safetensors_tells_base_data_numbers_and_license(
    quantized: Child, dataset: Path, inside: ChildRunner, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(quantized.output("model"), source)
    (source / "README.md").write_text("---\nlicense: mit\nbase_model: acme/base\n---\n# Old\n")
    change_config(source, _name_or_path="/somewhere/else", transformers_version="4.0")
    run = inside("export", {"format": "safetensors", "type": "f16"},
                 {"model": source, "data": dataset})  # fmt: skip
    assert run.done.state == "succeeded", run.log
    folder = run.output("model")
    head = card.front_matter(folder)
    assert head["base_model"] == "acme/base"
    assert head["license"] == "mit"
    assert head["datasets"] == ["team/data"]
    assert head["library_name"] == "mlx"
    assert {"mlx", "safetensors"} <= set(head["tags"])
    text = (folder / "README.md").read_text()
    value = run.proofs()["perplexity_difference"].detail.split()[0]
    assert "Perplexity" in text
    assert value.isdigit()
    assert "mlx_lm.generate" in text
    config = json.loads((folder / "config.json").read_text())
    assert not {"quantization", "_name_or_path"} & set(config)
    assert config["torch_dtype"] == "float16"
