"""Every pre-tokenizer that an export has a name for, read by llama.cpp: the same tokens."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from espalier.exporting import PRE_TOKENIZERS, find_pre
from espalier.textsql import texts
from worker.engine import tiny
from worker.engine.export.gguf_arch import Source
from worker.engine.export.gguf_reader import Reading, read
from worker.engine.export.gguf_tokenizer import CHECK_TEXTS, read_vocabulary
from worker.engine.export.gguf_writer import About, write
from worker.engine.models import Loaded, load_model

SIZE = 1024
#: Beside the check texts, which they learn from: so that merges across their borders are there.
#: Without `aÉ`: an accented capital inside a word is split otherwise by llama.cpp's own tekken and
#: gpt-4o, in every GGUF of such a model.
_MORE = ("you'll we've I'M It'S 12 123 1234 a/b //x\n\n\n  y \u3000z", "ÀÉ éà Été ﬁ ① ²³ _x__y")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model whose embedding has rows enough."""
    directory = tmp_path_factory.mktemp("base") / "model"
    tiny.make(directory, steps=0, vocabulary=SIZE)
    return load_model(directory)


def _learn(tokenizer: Tokenizer, special: list[str], alphabet: list[str], size: int = 900) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    source = [*islice(texts(5), 60), *CHECK_TEXTS * 20, *_MORE * 20]
    tokenizer.train_from_iterator(source, trainer)


def _same(base: Loaded, tokenizer: Any, directory: Path) -> str:
    """Write ``base`` with a tokenizer, have llama.cpp read the texts; return the name it had."""
    tokenizer.save_pretrained(directory)
    loaded = TokenizerWrapper(AutoTokenizer.from_pretrained(directory))
    words = read_vocabulary(directory, loaded, SIZE)
    path = directory / "model.gguf"
    write(Source.of(base), words, About("tiny"), path, "f16", lambda *_: None)
    texts_read = [*CHECK_TEXTS, *_MORE]
    answer = read(Reading(path=str(path), texts=texts_read, prompts=[], ends=[]))
    for text, found in zip(texts_read, answer.tokenized, strict=True):
        assert found == loaded.encode(text, add_special_tokens=False), (words.pre, text)
    return words.pre


def _byte_level(*before: Any, regex: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    tokenizer.decoder = decoders.ByteLevel()
    _learn(tokenizer, ["<|end|>"], pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


@pytest.mark.parametrize("name", [*PRE_TOKENIZERS.values(), "smollm"])
def test_a_pre_tokenizer_by_its_name(name: str, base: Loaded, tmp_path: Path) -> None:
    if name == "smollm":
        tokenizer = _byte_level(pre_tokenizers.Digits(individual_digits=True), regex=True)
    else:
        (expression,) = (e for e, known in PRE_TOKENIZERS.items() if known == name)
        split = pre_tokenizers.Split(Regex(expression), "isolated")
        tokenizer = _byte_level(split, regex=False)
    assert find_pre(json.loads(tokenizer.to_str())) == name
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    assert _same(base, fast, tmp_path) == name


@pytest.mark.parametrize("prefix", [True, False], ids=["as-llama-2", "as-gemma"])
def test_sentencepiece_with_and_without_a_space_first(
    prefix: bool, base: Loaded, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    first = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*first, replace])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    _learn(tokenizer, ["<unk>", "<s>", "</s>", *spelled], [])
    rules = json.loads(tokenizer.to_str())
    # The trainer had to be told of the bytes as special tokens; as such no text would use them.
    rules["added_tokens"] = [t for t in rules["added_tokens"] if t["content"] not in spelled]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    assert _same(base, fast, tmp_path) == "default"
