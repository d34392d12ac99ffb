"""What a pass over the layers holds at its worst moment, term by term.

A term is how many bytes one kind of tensor takes; its coefficient says how many of them are alive
at once. Coefficients are fitted by ``python -m benchmarks.memory --fit`` on shapes of their own,
and the benchmark holds the predictor to others. Attention counts as MLX computes it in training,
with all scores written out; where a GPU's kernel keeps none, less is held than is told.
"""

from collections.abc import Mapping
from math import ceil

from espalier.geometry import Geometry, Linear
from espalier.specs import EvalSpec, FuseSpec, QuantizeSpec, TrainSpec

COEFFICIENTS: dict[str, float] = {
    "V": 3.55,
    "V4": 0.41,
    "layer": 9.06,
    "scores": 0.8,
    "f": 3.76,
    "qk": 6.24,
    "S": 1.18,
    "g": 2.17,
    "gqk": 4.76,
    "gf": 3.78,
    "r": 0.86,
    "low": 0.44,
    "glow": 0.58,
    "dora": 0.78,
    "doraQ": 0.93,
    "gdora": 0.23,
    "gdoras": 0.26,
    "qwen3": 2.31,
    "gemma": 0.52,
    "phi3": 2.37,
    "mixtral": 0.0,
    "T_lora": 0.0,
    "T_full": 0.38,
    "T_muon": 0.0,
    "T_sum": 0.98,
    "U_adam": 3.62,
    "U_sgd": 0.95,
    "U_adafactor": 2.29,
    "U_muon": 3.54,
    "U_sum": 0.66,
    "eV": 1.98,
    "eV4": 0.0,
    "eS": 0.83,
    "eS4": 0.32,
    "eh": 11.17,
    "ef": 0.76,
    "eqk": 3.17,
    "e4": 0.72,
    "cV": 3.0,
}
#: Tokens of which log probabilities are taken at once (worker.engine.recording).
CHUNK = 256
#: The part that a term is told under, where its name does not say so.
_PART = {
    **dict.fromkeys(("V", "V4", "eV", "eV4", "cV"), "logits"),
    **dict.fromkeys(("S", "scores", "eS", "eS4"), "attention"),
}

_KIND = {"T_": "gradients", "U_": "update"}
#: Optimizers that do the same with memory.
_RULE = {"adamw": "adam"}


def tokens(spec: TrainSpec | EvalSpec | FuseSpec | QuantizeSpec, longest: int | None) -> int:
    """Positions of one row: mlx-lm pads to a multiple of 32 and one, and shifts by one."""
    most = spec.max_seq_length
    packed = isinstance(spec, TrainSpec) and spec.packing  # rows are filled up with others
    row = most if packed else min(longest or most, most)
    return max(min(32 * ceil(row / 32) + 1, most) - 1, 1)


def rows(spec: TrainSpec | EvalSpec | FuseSpec | QuantizeSpec) -> int:
    """Rows that are computed together."""
    return min(spec.micro_batch_size or spec.batch_size, spec.batch_size)


def trained_layers(model: Geometry, spec: TrainSpec) -> int:
    return model.layers if spec.num_layers == -1 else min(spec.num_layers, model.layers)


def trained_linears(model: Geometry, spec: TrainSpec) -> tuple[Linear, ...]:
    """Return the matrices of a layer that get an adapter."""
    keys = spec.lora_parameters.keys
    return tuple(x for x in model.linears() if keys is None or x.name in keys)


def trained_bytes(model: Geometry, spec: TrainSpec) -> int:
    """Bytes of the weights that are trained: adapters are float32, a full fine-tune is not."""
    layers = trained_layers(model, spec)
    if spec.fine_tune_type == "full":
        return layers * model.layer_elements * model.width
    rank = spec.lora_parameters.rank
    dora = spec.fine_tune_type == "dora"
    each = sum(
        rank * (x.inputs + x.outputs) * x.count + (x.outputs if dora else 0)
        for x in trained_linears(model, spec)
    )
    return 4 * layers * each


def train_terms(model: Geometry, spec: TrainSpec, longest: int | None) -> dict[str, float]:
    """Return bytes by term, each to be multiplied by its coefficient.

    What the backward pass needs is kept for every trained layer; with grad_checkpoint it is what
    comes into each of them, and the rest of the one at work (terms that begin with ``g``).
    """
    length = tokens(spec, longest)
    n = rows(spec) * length  # positions computed together
    unit = n * model.width
    trained, layers = trained_bytes(model, spec), trained_layers(model, spec)
    h, f, qk = model.hidden, model.inter * model.active, model.queries + model.keys
    found: dict[str, float] = {
        "V": unit * model.vocab,
        "layer": unit * (h + f),
        "scores": unit * model.heads * length,
        "T_full" if spec.fine_tune_type == "full" else "T_lora": trained,
    }
    if model.width < 4:
        found["V4"] = n * 4 * model.vocab
    if spec.optimizer == "muon":
        found["T_muon"] = trained
    if rows(spec) < spec.batch_size or spec.grad_accumulation_steps > 1:
        found["T_sum"] = trained
    if spec.grad_checkpoint:
        found |= {"g": unit * h * layers, "gqk": unit * qk, "gf": unit * f}
    else:
        found |= {"f": unit * f * layers, "qk": unit * qk * layers}
        found["S"] = found["scores"] * layers
    kept = 1 if spec.grad_checkpoint else layers
    found |= _of_architecture(model, unit * kept)
    if spec.fine_tune_type != "full":
        found |= _of_adapters(model, spec, n, kept)
    return found


def _of_architecture(model: Geometry, unit: int) -> dict[str, float]:
    """What a layer keeps beyond Llama's: norms of q and k, GELU, fused halves, experts' sorting."""
    h, f = model.hidden, model.inter * model.active
    match model.architecture:
        case "qwen3":
            return {"qwen3": unit * (model.queries + model.keys)}
        case "gemma":
            return {"gemma": unit * (h + f)}
        case "phi3":
            return {"phi3": unit * f}
        case "mixtral":
            return {"mixtral": unit * (model.active * h + f)}
    return {}


def _of_adapters(model: Geometry, spec: TrainSpec, n: int, kept: int) -> dict[str, float]:
    """What adapters add: their inner values, float32 outputs, and the weights DoRA adapts."""
    linears = trained_linears(model, spec)
    copies = [model.active if x.count > 1 else 1 for x in linears]
    outputs = sum(x.outputs * c for x, c in zip(linears, copies, strict=True))
    matrices = sum(x.size for x in linears)
    again = spec.grad_checkpoint
    found: dict[str, float] = {"r": n * 4 * spec.lora_parameters.rank * sum(copies) * kept}
    if model.width < 4:
        found["glow" if again else "low"] = n * 4 * outputs * kept
    if spec.fine_tune_type == "dora":
        if again:
            found |= {"gdora": 4 * matrices, "gdoras": 4 * matrices * trained_layers(model, spec)}
        else:
            found["dora"] = n * model.width * outputs * kept
        if model.bits:
            found["doraQ"] = model.width * matrices * kept
    return found


def update_terms(model: Geometry, spec: TrainSpec) -> dict[str, float]:
    """Return bytes by term of the optimizer's step, when the activations are gone.

    Gradients, and what a weight and its state are until the new ones take their place.
    """
    trained = trained_bytes(model, spec)
    found: dict[str, float] = {f"U_{_RULE.get(spec.optimizer, spec.optimizer)}": trained}
    if rows(spec) < spec.batch_size or spec.grad_accumulation_steps > 1:
        found["U_sum"] = trained
    return found


def parts_of(terms: Mapping[str, float]) -> dict[str, float]:
    """Return terms times their coefficients, summed under the names people read."""
    found: dict[str, float] = {}
    for name, size in terms.items():
        part = _PART.get(name) or _KIND.get(name[:2], "activations")
        found[part] = found.get(part, 0.0) + size * COEFFICIENTS[name]
    return found


def eval_terms(model: Geometry, rows: int, length: int) -> dict[str, float]:
    """Return bytes by term of a forward pass: one layer's values, and the logits.

    A softmax, and matrices in two-byte types on a CPU, are computed in four bytes.
    """
    n, e = rows * length, model.width
    h, f = model.hidden, model.inter * model.active
    found: dict[str, float] = {
        "eV": n * e * model.vocab,
        "eS": n * e * model.heads * length,
        "eh": n * e * h,
        "ef": n * e * f,
        "eqk": n * e * (model.queries + 2 * model.keys),
    }
    if e < 4:
        found |= {
            "eV4": n * 4 * model.vocab,
            "eS4": n * 4 * model.heads * length,
            "e4": n * 4 * (h + f),
        }
    return found


def compare_terms(model: Geometry, rows: int, length: int) -> dict[str, float]:
    """Return bytes by term of a pass whose log probabilities are kept, a chunk at a time."""
    found = eval_terms(model, rows, length)
    found["cV"] = float(min(rows * length, CHUNK) * 4 * model.vocab)
    return found
