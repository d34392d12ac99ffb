"""A Hugging Face tokenizer as GGUF metadata: vocabulary, merges, and llama.cpp's pre-tokenizer.

llama.cpp knows pre-tokenizers by name only, and a wrong name silently changes the tokens. The name
is found from the tokenizer's own rules; what is not known is refused, and the export's proof has
llama.cpp tokenize a check text besides.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from worker.engine.report import BadInput

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACE}"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
#: The splitting expression of a byte-level tokenizer → llama.cpp's name for it.
_PRE = {
    _GPT2: "gpt-2",
    f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}{{1,3}}|{_TAIL}": "llama-bpe",
    f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}|{_TAIL}": "qwen2",
    f"{_UPPER}|{_LOWER}|\\p{{N}}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n/]*|{_SPACE}": "tekken",
}

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
    """What GGUF stores of a tokenizer. ``model`` is gpt2 (byte-level BPE) or llama (SPM)."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    add_bos: bool
    add_space_prefix: bool


def _splits(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, a sequence taken apart."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return [s for step in pre_tokenizer["pretokenizers"] for s in _splits(step)]
    return [pre_tokenizer]


def find_pre(tokenizer: dict[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a ``tokenizer.json``; raises BadInput."""
    steps = _splits(tokenizer.get("pre_tokenizer"))
    if steps and steps[-1]["type"] == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        *before, last = steps
        regex = last.get("use_regex", True)
        kinds = [step["type"] for step in before]
        if regex and not kinds:
            return "gpt-2"
        if regex and kinds == ["Digits"] and before[0].get("individual_digits"):
            return "smollm"
        if not regex and kinds == ["Split"]:
            expression = before[0]["pattern"].get("Regex")
            if expression in _PRE:
                return _PRE[expression]
    raise BadInput(
        f"The tokenizer's pre-tokenizer is not one that GGUF has a known name for:"
        f" {json.dumps(steps, ensure_ascii=False):.400}",
        "A wrong name would change the tokens without a word, so it is refused. Known are those"
        f" of {', '.join(sorted({*_PRE.values(), 'smollm'}))}, and SentencePiece's.",
    )


def _is_spm(tokenizer: dict[str, Any]) -> bool:
    """Llama 2's and Mistral's kind: pieces with ▁ for space, and bytes as a fallback."""
    model = tokenizer["model"]
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def read_vocabulary(directory: Path, tokenizer: Any, size: int) -> Vocabulary:
    """Read the vocabulary of a saved tokenizer, padded to the ``size`` of the embedding.

    Raises BadInput for a tokenizer that is neither byte-level BPE nor SentencePiece's BPE.
    """
    path = directory / "tokenizer.json"
    rules = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if rules is None or rules["model"].get("type") != "BPE":
        kind = rules["model"].get("type") if rules else "no tokenizer.json"
        raise BadInput(f"The tokenizer is {kind}: GGUF export knows BPE only.")
    spm = _is_spm(rules)
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
        model="llama" if spm else "gpt2",
        pre="default" if spm else find_pre(rules),
        tokens=tokens,
        types=types,
        scores=scores if spm else None,
        add_bos=len(plain) > 1 and plain[0] == tokenizer.bos_token_id,
        add_space_prefix=spm and _prefixes_space(rules),
    )


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
    steps = _splits(rules.get("pre_tokenizer"))
    if any(s["type"] == "Metaspace" and s.get("prepend_scheme") != "never" for s in steps):
        return True
    normalizer = rules.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    return any(part.get("type") == "Prepend" for part in parts)
