"""Make a tiny model in seconds: ``python -m worker.engine.tiny OUT_DIR``.

A real one in every respect but size: llama, qwen2 or qwen3, a byte-level BPE tokenizer trained on
text-to-SQL rows, a chat template, and a short pre-training, so that it has something to unlearn and
greedy text that does not hang on rounding. The demo and the tests fine-tune it; no network is used.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.utils import _get_classes, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from espalier.textsql import texts

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_END = 2  # <|im_end|>
_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'"
    " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
#: Rows of the pre-training come from seeds that no demo or test uses for its data.
_TEXT_SEED = 1_000_003


def make_tokenizer(directory: Path, vocabulary: int, seed: int) -> Tokenizer:
    """Train and save a byte-level BPE tokenizer of exactly ``vocabulary`` entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(islice(texts(_TEXT_SEED + seed), 1000), trainer)
    if (size := tokenizer.get_vocab_size()) < vocabulary:
        tokenizer.add_tokens([f"<|unused_{i}|>" for i in range(vocabulary - size)])
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_SPECIAL[_END],
        pad_token=_SPECIAL[0],
        additional_special_tokens=[_SPECIAL[1]],
    )
    saved.chat_template = _CHAT_TEMPLATE
    saved.save_pretrained(directory)
    return tokenizer


def make_config(arch: str, hidden: int, layers: int, vocabulary: int, dtype: str) -> dict[str, Any]:
    """Return ``config.json`` of a model whose sizes divide by every quantization group."""
    return {
        "architectures": [_CLASSES[arch]],
        "model_type": arch,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        "bos_token_id": 0,
        "eos_token_id": _END,
    }


def _initialize(model: Any) -> None:
    def init(path: str, value: Any) -> Any:
        # Norms stay at one; everything with two dimensions starts small, biases at zero.
        return mx.random.normal(value.shape) * 0.02 if value.ndim > 1 else value

    model.update(tree_map_with_path(init, model.parameters()))


def _batch(rows: Sequence[list[int]], length: int) -> tuple[Any, Any]:
    """Pad token rows to ``length``; return them with a mask of their targets."""
    tokens: Any = np.zeros((len(rows), length + 1), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row[: length + 1]
    spans = np.array([len(row) for row in rows])[:, None]
    return mx.array(tokens), mx.array(np.arange(1, length + 1)[None] < spans)


def pretrain(model: Any, tokenizer: Tokenizer, steps: int, seed: int, batch_size: int = 4) -> float:
    """Train all weights for ``steps`` on rows the demo does not have; return the last loss."""
    source = texts(_TEXT_SEED + 1 + seed)
    optimizer = optim.AdamW(learning_rate=4e-3, weight_decay=0.01)

    def loss_of(model: Any, tokens: Any, mask: Any) -> Any:
        loss = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]) * mask
        return loss.sum() / mask.sum()

    value_and_grad = nn.value_and_grad(model, loss_of)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(tokens: Any, mask: Any) -> Any:
        loss, gradient = value_and_grad(model, tokens, mask)
        optimizer.update(model, gradient)
        return loss

    loss = mx.array(float("nan"))
    for _ in range(steps):
        rows = [[*tokenizer.encode(text).ids, _END] for text in islice(source, batch_size)]
        loss = step(*_batch(rows, 64))
        mx.eval(state, loss)
    return float(loss.item())


def make(
    directory: Path,
    arch: str = "llama",
    steps: int = 80,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    vocabulary: int = 512,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Write a model folder; return its parameters, bytes and last pre-training loss."""
    directory.mkdir(parents=True, exist_ok=True)
    mx.random.seed(seed)
    tokenizer = make_tokenizer(directory, vocabulary, seed)
    config = make_config(arch, hidden, layers, vocabulary, dtype)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    _initialize(model)
    loss = pretrain(model, tokenizer, steps, seed) if steps else None
    model.set_dtype(getattr(mx, dtype))
    save_model(directory, model)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return {
        "parameters": sum(value.size for _, value in tree_flatten(model.parameters())),
        "bytes": sum(path.stat().st_size for path in directory.iterdir()),
        "loss": loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.engine.tiny", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="OUT_DIR")
    parser.add_argument("--arch", choices=sorted(_CLASSES), default="llama")
    parser.add_argument("--pretrain", type=int, default=80, metavar="STEPS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=64, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=512, help="at least 300")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = parser.parse_args()
    began = time.perf_counter()
    made = make(
        args.directory,
        args.arch,
        args.pretrain,
        args.seed,
        args.hidden,
        args.layers,
        args.vocabulary,
        args.dtype,
    )
    made["seconds"] = round(time.perf_counter() - began, 2)
    sys.stdout.write(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
