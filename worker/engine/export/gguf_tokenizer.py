"""A Hugging Face tokenizer as GGUF metadata: vocabulary, merges, and llama.cpp's pre-tokenizer.

llama.cpp knows pre-tokenizers by name only, and a wrong name silently changes the tokens. The name
is found from the tokenizer's own rules (espalier.exporting); what is not known is refused, and the
export's proof has llama.cpp tokenize check texts besides.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from espalier.exporting import check_tokenizer, find_pre, is_sentencepiece, splits
from worker.engine.report import BadInput

#: Exercises what pre-tokenizers differ in: contractions, digits, runs of space, scripts, emoji.
CHECK_TEXTS = (
    "Hello, world! It's what we'll test: I'm, you're, they'd, DON'T.",
    "3.14159 and 1234567 items, 42nd of 2024; x1y22z333",
    "  two   spaces\n\n\tand a tab\n \n end ",
    "SELECT COUNT Player FROM 1-1034-2 WHERE Team = 'Bears'",
    "def f(a, b):\n    return a[b] != {'k': None}  # done",
    "Größe déjà vu, Привет мир, 你好世界, こんにちは, 안녕하세요, مرحبا",
    "🚀 (normal) 😶‍🌫️ (multiple emojis) ✅ ------======= !!!???...",
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What GGUF stores of a tokenizer. ``model`` is gpt2 (byte-level BPE) or llama (SPM).

    ``ends`` are the tokens that end a text, the tokenizer's own first; ``directory`` is where
    merges, special tokens and chat template are read from.
    """

    directory: Path
    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    add_bos: bool
    add_space_prefix: bool
    ends: tuple[int, ...]


def read_vocabulary(
    directory: Path, tokenizer: Any, size: int, pre_tokenizer: str | None = None
) -> Vocabulary:
    """Read the vocabulary of a saved tokenizer, padded to the ``size`` of the embedding.

    ``directory`` holds the tokenizer as ``save_pretrained`` leaves it; ``pre_tokenizer`` is
    llama.cpp's name where a person knows it. Raises InvalidInput for a tokenizer that is neither
    byte-level BPE nor SentencePiece's BPE, BadInput for one the embedding is too small for.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise BadInput("The tokenizer has no tokenizer.json: GGUF export reads no other form.")
    rules = json.loads(path.read_text(encoding="utf-8"))
    check_tokenizer(rules, pre_tokenizer)
    spm = is_sentencepiece(rules)
    pieces = {index: piece for piece, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    if max(pieces) >= size:
        raise BadInput(
            f"The tokenizer has token {max(pieces)}, and the model's embedding only {size} rows."
        )
    ranks = _ranks(rules) if spm else None
    tokens, types, scores = [], [], []
    for index in range(size):
        piece = pieces.get(index)
        tokens.append(f"[PAD{index}]" if piece is None else piece)
        types.append(int(_token_type(piece, added.get(index), spm, rules)))
        scores.append(0.0 if ranks is None or piece is None else ranks.get(piece, -1e6))
    plain = tokenizer.encode("a")
    return Vocabulary(
        directory=directory,
        model="llama" if spm else "gpt2",
        pre="default" if spm else pre_tokenizer or find_pre(rules),
        tokens=tokens,
        types=types,
        scores=scores if spm else None,
        add_bos=len(plain) > 1 and plain[0] == tokenizer.bos_token_id,
        add_space_prefix=spm and _prefixes_space(rules),
        ends=_ends(tokenizer.eos_token_id, tokenizer.eos_token_ids),
    )


def _ends(first: int | None, others: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys([*([] if first is None else [first]), *sorted(others)]))


def _token_type(piece: str | None, added: Any, spm: bool, rules: dict[str, Any]) -> gguf.TokenType:
    if piece is None:
        return gguf.TokenType.UNUSED
    if spm and piece == rules["model"].get("unk_token"):
        return gguf.TokenType.UNKNOWN
    if added is not None:
        return gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    if spm and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def _ranks(rules: dict[str, Any]) -> dict[str, float]:
    """Scores that make llama.cpp merge in the order of ``merges``: the earlier, the higher.

    SentencePiece's own scores are just that for its BPE models: minus the rank.
    """
    scores: dict[str, float] = {}
    for rank, pair in enumerate(rules["model"]["merges"]):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        scores.setdefault(left + right, -float(rank))
    return scores


def _prefixes_space(rules: dict[str, Any]) -> bool:
    steps = splits(rules.get("pre_tokenizer"))
    if any(s["type"] == "Metaspace" and s.get("prepend_scheme") != "never" for s in steps):
        return True
    normalizer = rules.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    return any(part.get("type") == "Prepend" for part in parts)
