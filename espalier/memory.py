"""How much memory a job needs at its worst moment, told before it runs.

Bytes follow from the model's shape, the exact size of its weights and the spec. What is held at
once is counted from what the engines do (worker.engine); how often a tensor of each size is held
in the worst moment is a coefficient, fitted on measured peaks of ``mx.get_peak_memory`` and held
to others (``python -m benchmarks.memory``). Pure: learning from measured jobs is
scheduler.placing.estimates' business.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from espalier.activations import (
    compare_terms,
    eval_terms,
    parts_of,
    rows,
    tokens,
    train_terms,
    trained_bytes,
    update_terms,
)
from espalier.exporting import GGUF_BYTES
from espalier.geometry import BYTES, Geometry, UnknownModel, read
from espalier.specs import EvalSpec, ExportSpec, FuseSpec, QuantizeSpec, Spec, TrainSpec
from espalier.specs.recipes import LEARNED

#: What a child holds before any weight is read: Python, MLX, transformers. An estimate, which
#: measured peaks correct (scheduler.placing.estimates).
RUNTIME = 450 << 20
#: What an allocator keeps beside the live tensors, as a share of what is not weights; as above.
SLACK = 0.1
#: Tokens of a row in an export's proof: the spec has no limit (worker.engine.export.job).
_EXPORT_TOKENS = 2048
#: Copies of the trained weights that an optimizer keeps as its state. Adafactor keeps sums of
#: rows and columns.
STATE = {"adam": 2.0, "adamw": 2.0, "muon": 1.0, "sgd": 1.0, "adafactor": 0.05}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes at the worst moment. ``parts`` add up to ``total``.

    Not ``known``: nothing honest can be said, ``total`` is only what the weights take, and ``why``
    tells it as a part of a sentence.
    """

    total: int
    parts: Mapping[str, int]
    known: bool = True
    why: str = ""

    @property
    def engine(self) -> int:
        """Bytes by MLX's own count: all but the reserve."""
        return self.total - self.parts.get("reserve", 0)


@dataclass(slots=True)
class _Parts:
    """Parts while they are summed; the reserve is made of the others."""

    found: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, size: float) -> None:
        self.found[name] = self.found.get(name, 0.0) + size

    def add_larger(self, one: Mapping[str, float], other: Mapping[str, float]) -> None:
        """Add what is held in the worse of two moments."""
        self.add_all(max(one, other, key=lambda held: sum(held.values())))

    def add_all(self, parts: Mapping[str, float]) -> None:
        for name, size in parts.items():
            self.add(name, size)

    def estimate(self) -> Estimate:
        moving = sum(size for name, size in self.found.items() if name != "weights")
        self.add("reserve", RUNTIME + SLACK * moving)
        parts = {name: round(size) for name, size in self.found.items() if size >= 1}
        return Estimate(sum(parts.values()), parts)


def estimate(
    config: Mapping[str, Any] | None,
    spec: Spec,
    weights: int | None = None,
    longest: int | None = None,
    adapter: int = 0,
) -> Estimate:
    """Return what a job needs.

    ``config`` is the model's config.json, ``weights`` the bytes of its weight files (else what the
    config tells), ``longest`` the longest row in tokens (else max_seq_length), ``adapter`` the
    bytes of the adapter that is applied.
    """
    held = max(weights or 0, 0)
    try:
        if config is None:
            raise UnknownModel("the model's config.json has not been read")
        model = read(config)
        _refuse(model, spec)
        return _parts(model, spec, held or model.weights, longest, adapter).estimate()
    except UnknownModel as error:
        return Estimate(held, {"weights": held} if held else {}, False, str(error))


def _parts(model: Geometry, spec: Spec, held: int, longest: int | None, adapter: int) -> _Parts:
    parts = _Parts()
    match spec:
        case TrainSpec():
            _train(parts, model, spec, held, longest)
        case EvalSpec():
            _eval(parts, model, spec, held, longest, adapter)
        case FuseSpec():
            _fuse(parts, model, spec, held, longest, adapter)
        case QuantizeSpec():
            _quantize(parts, model, spec, held, longest)
        case ExportSpec():
            _export(parts, model, spec, held)
    return parts


def made(config: Mapping[str, Any], spec: Spec) -> Mapping[str, Any]:
    """Return the config of the model that a job makes out of one with ``config``."""
    plain = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    match spec:
        case QuantizeSpec():
            bits = {"bits": spec.q_bits, "group_size": spec.q_group_size}
            typed = {**plain, "torch_dtype": spec.dtype} if spec.dtype else plain
            return {**typed, "quantization": bits}
        case FuseSpec(dequantize=True):
            return plain
        case ExportSpec():
            types = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
            return {**plain, "torch_dtype": types[spec.type]} if spec.type in types else plain
    return config


def _refuse(model: Geometry, spec: Spec) -> None:
    """Raise UnknownModel for what no engine runs: such a job ends before it holds anything."""
    if not isinstance(spec, TrainSpec):
        return
    if spec.fine_tune_type == "full" and model.bits:
        raise UnknownModel(f"a {model.bits}-bit model cannot be trained in full")
    if spec.fine_tune_type == "dora" and model.experts:
        raise UnknownModel("DoRA does not know the layers of a mixture of experts")


# --- By kind ------------------------------------------------------------------------------


def _train(
    parts: _Parts, model: Geometry, spec: TrainSpec, weights: int, longest: int | None
) -> None:
    trained = trained_bytes(model, spec)
    parts.add("weights", weights)
    # In a full fine-tune the trained weights are the model's own.
    parts.add("adapter", trained if spec.fine_tune_type != "full" else 0)
    parts.add("optimizer", trained * STATE[spec.optimizer])
    backward = parts_of(train_terms(model, spec, longest))
    parts.add_larger(backward, parts_of(update_terms(model, spec)))


def _eval(
    parts: _Parts,
    model: Geometry,
    spec: EvalSpec,
    weights: int,
    longest: int | None,
    adapter: int,
) -> None:
    parts.add("weights", weights)
    parts.add("adapter", adapter)
    parts.add_all(parts_of(eval_terms(model, rows(spec), tokens(spec, longest))))


def _fuse(
    parts: _Parts,
    model: Geometry,
    spec: FuseSpec,
    weights: int,
    longest: int | None,
    adapter: int,
) -> None:
    """One model at a time: base and adapter are measured, then the result; what the first said
    waits on disk. Between them the result is written tensor by tensor, a layer unpacked at once.
    """
    result = model.plain.weights if spec.dequantize and model.bits else weights
    layer = 3 * model.width * model.layer_elements
    parts.add_larger({"weights": weights, "adapter": adapter}, {"result": result})
    proof = parts_of(compare_terms(model, rows(spec), tokens(spec, longest)))
    parts.add_larger({"unpacked": layer}, proof)


def _quantize(
    parts: _Parts, model: Geometry, spec: QuantizeSpec, weights: int, longest: int | None
) -> None:
    """The original is measured alone, then each variant; all are written tensor by tensor."""
    results = []
    for _, recipe in spec.recipes:
        if recipe.method in LEARNED:
            raise UnknownModel(f"what the method {recipe.method} holds has not been measured")
        width = BYTES[recipe.dtype] if recipe.dtype else model.width
        bits = 0 if recipe.method == "none" else recipe.q_bits
        made = replace(model, bits=bits, group=recipe.q_group_size, width=width)
        results.append(made.weights)
    parts.add_larger({"weights": weights}, {"result": max(results)})
    layer = (4 + model.width) * model.layer_elements
    proof = parts_of(compare_terms(model, rows(spec), tokens(spec, longest)))
    parts.add_larger({"unpacked": layer}, proof)


def _export(parts: _Parts, model: Geometry, spec: ExportSpec, weights: int) -> None:
    """The model, unpacked for a GGUF, and llama.cpp with the file beside it, as its proof.

    Tensors are converted one by one, in float32; the embedding is the largest. A folder of
    safetensors is measured alone, after the model it was made from.
    """
    plain = model.plain
    elements = plain.weights // plain.width
    file = round(elements * max(GGUF_BYTES[kind] for kind in spec.wanted))
    largest = 3 * 4 * max(model.vocab * model.hidden, *(x.size for x in model.linears()))
    if spec.format == "gguf":
        parts.add("weights", weights)
        parts.add("unpacked", plain.weights if model.bits else 0)
        again = {"in MLX again": file} if spec.side_by_side else {}
        parts.add_larger({"converted": largest}, {"llama.cpp": file, **again})
        return
    parts.add_larger({"weights": weights}, {"result": file})
    proof = parts_of(compare_terms(model, 1, _EXPORT_TOKENS))
    parts.add_larger({"converted": largest}, proof)
