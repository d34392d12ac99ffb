"""The configurations that the memory predictor is fitted on, and those it is held to.

Fitted and held-out ones share no shape: other widths, vocabularies and lengths. Both are seeded
draws around what real models look like, scaled down until a step takes a second on two cores.
"""

import random
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A model to make; ``bits`` 0 is unquantized, ``experts`` belongs to mixtral."""

    arch: str
    hidden: int
    inter: int
    heads: int
    kv: int
    layers: int
    vocab: int
    tied: bool
    dtype: str
    bits: int = 0
    experts: int = 4

    @property
    def name(self) -> str:
        """A folder's name, other for every other shape."""
        return "-".join(str(value) for value in asdict(self).values())

    def config(self) -> dict[str, Any]:
        """Return ``config.json`` before quantization."""
        config: dict[str, Any] = {
            "model_type": self.arch,
            "hidden_size": self.hidden,
            "intermediate_size": self.inter,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv,
            "head_dim": self.hidden // self.heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "torch_dtype": self.dtype,
            "bos_token_id": 0,
            "eos_token_id": 2,
        }
        if self.arch == "mixtral":
            config |= {"num_local_experts": self.experts, "num_experts_per_tok": 2}
        return config


@dataclass(frozen=True, slots=True)
class Case:
    """A job on a shape; ``spec`` is its spec without references."""

    shape: Shape
    kind: str
    spec: dict[str, Any]

    @property
    def method(self) -> str:
        """What people call it: lora, qlora, dora, full, or the kind."""
        kind = self.spec.get("fine_tune_type", self.kind)
        return f"q{kind}" if self.shape.bits and kind in ("lora", "dora") else kind


@dataclass(frozen=True, slots=True)
class Space:
    """What is drawn from; two spaces share no shape."""

    head_dims: tuple[int, ...]
    packed: tuple[int, ...]  # widths of quantized models: groups of 32 divide them
    ratios: tuple[int, ...]  # of the feed-forward's width
    layers: tuple[int, ...]
    vocabularies: tuple[int, ...]
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    ranks: tuple[int, ...]


FITTED = Space(
    head_dims=(16, 24, 32),
    packed=(64, 128, 192),
    ratios=(2, 3, 4),
    layers=(2, 3, 4, 6),
    vocabularies=(512, 768, 1024, 2048),
    batches=(1, 2, 3, 4),
    lengths=(64, 96, 128, 160, 224),
    ranks=(4, 8, 16, 32),
)
HELD_OUT = Space(
    head_dims=(20, 28, 40),
    packed=(96, 160, 224),
    ratios=(2, 3, 4),
    layers=(2, 3, 5),
    vocabularies=(640, 896, 1536, 3072),
    batches=(1, 2, 5),
    lengths=(80, 112, 144, 192, 256),
    ranks=(6, 12, 24),
)
#: A job of each method, as ``(method, dtype, bits)``, for every architecture held out.
METHODS = (
    ("lora", "float32", 0),
    ("lora", "bfloat16", 0),
    ("lora", "float32", 4),
    ("lora", "float32", 8),
    ("dora", "float32", 0),
    ("full", "float32", 0),
    ("full", "bfloat16", 0),
    ("eval", "float32", 0),
    ("eval", "bfloat16", 0),
)


def held_out() -> list[Case]:
    """The configurations that the predictor is judged by: 36 of four architectures."""
    archs = ("llama", "qwen2", "qwen3", "gemma")
    plan = [(arch, *method) for method in METHODS for arch in archs]
    return draw(1121, plan, HELD_OUT)


def fitted(rounds: int = 4) -> list[Case]:
    """The configurations that coefficients are fitted to: other shapes, and more architectures."""
    archs = ("llama", "qwen2", "qwen3", "gemma", "phi3", "mixtral")
    plan = [(arch, *method) for _ in range(rounds) for method in METHODS for arch in archs]
    return draw(7, plan, FITTED) + updates()


def updates() -> list[Case]:
    """Full fine-tunes of many weights on few tokens: the optimizer's step is their worst moment."""
    shapes = (
        Shape("llama", 192, 768, 6, 3, 2, 512, False, "float32"),
        Shape("qwen3", 144, 576, 6, 3, 3, 512, False, "bfloat16"),
    )
    cases = []
    for shape in shapes:
        for optimizer in ("adam", "adamw", "sgd", "adafactor", "muon"):
            for parts in (1, 2):
                spec: dict[str, Any] = {
                    "fine_tune_type": "full",
                    "optimizer": optimizer,
                    "num_layers": -1,
                    "batch_size": parts,
                    "iters": 2,
                    "val_batches": 0,
                    "max_seq_length": 64,
                    "save_every": 1000,
                    "steps_per_report": 1000,
                }
                spec |= {"micro_batch_size": 1} if parts > 1 else {}
                cases.append(Case(shape, "train", spec))
    return cases


def draw(seed: int, plan: list[tuple[str, str, str, int]], space: Space = FITTED) -> list[Case]:
    """Return a case for each ``(arch, method, dtype, bits)``; method is a kind or a fine-tune."""
    rng = random.Random(seed)
    cases = []
    for arch, method, dtype, bits in plan:
        shape = _shape(rng, space, arch, dtype, bits)
        kind = "eval" if method == "eval" else "train"
        spec = _eval(rng, space) if kind == "eval" else _train(rng, space, method, shape.layers)
        cases.append(Case(shape, kind, spec))
    return cases


def _shape(rng: random.Random, space: Space, arch: str, dtype: str, bits: int) -> Shape:
    heads = rng.choice((2, 4, 6))
    hidden = rng.choice(space.packed) if bits else heads * rng.choice(space.head_dims)
    heads = heads if hidden % (2 * heads) == 0 else 2
    return Shape(
        arch,
        hidden,
        hidden * rng.choice(space.ratios),
        heads,
        heads if arch in ("phi3", "gemma") and rng.random() < 0.5 else heads // 2,
        rng.choice(space.layers),
        rng.choice(space.vocabularies),
        arch == "gemma" or (arch not in ("mixtral", "phi3") and rng.random() < 0.4),
        dtype,
        bits,
    )


def _train(rng: random.Random, space: Space, method: str, layers: int) -> dict[str, Any]:
    """A run of two steps: the second has all that any later one has."""
    batch = rng.choice(space.batches)
    spec: dict[str, Any] = {
        "fine_tune_type": method,
        "optimizer": rng.choice(("adam", "adamw", "sgd", "adafactor", "muon")),
        "num_layers": rng.choice((-1, -1, max(1, layers // 2))),
        "batch_size": batch,
        "iters": 2,
        "val_batches": 0,
        "max_seq_length": rng.choice(space.lengths),
        "grad_checkpoint": rng.random() < 0.35,
        "save_every": 1000,
        "steps_per_report": 1000,
    }
    if method != "full":
        rank = rng.choice(space.ranks)
        spec["lora_parameters"] = {"rank": rank, "dropout": 0.0, "scale": 10.0}
    if batch > 1 and rng.random() < 0.2:
        spec["micro_batch_size"] = 1
    return spec


def _eval(rng: random.Random, space: Space) -> dict[str, Any]:
    batch, length = rng.choice(space.batches), rng.choice(space.lengths)
    return {"batch_size": batch, "test_batches": 1, "max_seq_length": length}
