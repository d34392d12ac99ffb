"""Rules of evals, fuses, quantizations and exports: a function each."""

from espalier import exporting
from espalier.errors import InvalidInput
from espalier.specs import EvalSpec, ExportSpec, FuseSpec, QuantizeSpec
from espalier.specs.recipes import AWQ_TYPES
from scheduler.lifecycle.roles import field_of
from scheduler.refusals.facts import Adapter, Known, Model, Refusal, Refusals


def eval_refusals(spec: EvalSpec, known: Known) -> Refusals:
    yield from fits(spec, known)
    data, adapter = known.data.get("data"), known.adapters.get("adapter")
    if data and spec.split not in data.rows:
        yield Refusal(
            "split",
            f"{data.label} has no {spec.split}.jsonl",
            f"It has {', '.join(data.rows)}: name one of them, or push it with {spec.split}.jsonl.",
        )
    if data and spec.mask_prompt and data.format == "text":
        yield Refusal(
            "mask_prompt",
            f"{data.label} has rows of text, which have no prompt to be masked",
            "Leave mask_prompt off.",
        )
    if spec.sweep and adapter and adapter.shapes and not adapter.steps:
        yield Refusal(
            "sweep",
            f"{adapter.label} has no checkpoints (0000100_adapters.safetensors and the like)",
            "Leave sweep off, or name an adapter whose training saved some (save_every).",
        )


def fuse_refusals(spec: FuseSpec, known: Known) -> Refusals:
    yield from fits(spec, known)


def quantize_refusals(spec: QuantizeSpec, known: Known) -> Refusals:
    """mlx_lm.convert keeps the old bits of a quantized model without a word."""
    model = known.model
    if model is None:
        return
    if model.type and model.type not in AWQ_TYPES:
        for name, recipe in spec.recipes:
            if recipe.method == "awq":
                yield Refusal(
                    "variants" if spec.variants else "method",
                    f"{name}: mlx-lm's awq does not know {model.type}, which {model.label} is",
                    f"It knows {', '.join(AWQ_TYPES)}. gptq and dwq know every architecture.",
                )
    if model.quantization and not spec.requantize:
        at = f" to {model.bits} bits" if model.bits else ""
        yield Refusal(
            "model",
            f"{model.label} is quantized{at} already: quantizing what is rounded rounds it twice",
            "Quantize the model that it was made from, or set requantize: it is then unpacked"
            " first, and what that costs is said.",
        )


def export_refusals(spec: ExportSpec, known: Known) -> Refusals:
    """Architectures and tokenizers that no GGUF is written of (espalier.exporting)."""
    model = known.model
    if spec.format != "gguf" or model is None or model.type is None:
        return
    try:
        rules = model.tokenizer() if spec.writer == "own" else None
        known_rules = rules if rules and rules.get("model") else None
        exporting.check_gguf(
            model.config, spec.wanted, spec.writer, known_rules, spec.pre_tokenizer
        )
    except InvalidInput as error:
        field = str(error.errors[0]["loc"][-1]) if error.errors else "model"
        yield Refusal(field, error.detail.rstrip("."), error.hint or "Use format safetensors.")


# --- Adapters on a model ------------------------------------------------------------------


def fits(spec: EvalSpec | FuseSpec, known: Known) -> Refusals:
    """Adapters that were made for another architecture than the model's."""
    if known.model is None:
        return
    for role, adapter in known.adapters.items():
        fault = _misfit(adapter, known.model)
        if fault:
            yield Refusal(
                field_of(spec.kind, role),
                f"{adapter.label} does not fit {known.model.label}: {fault}",
                "Name the base model that the adapter was trained on.",
            )


def _misfit(adapter: Adapter, model: Model) -> str | None:
    base = adapter.base
    if base and base.type and model.type and base.type != model.type:
        return f"it was trained on {base.label}, a {base.type}, and the model is a {model.type}"
    if adapter.blocks and model.layers and max(adapter.blocks) >= model.layers:
        return (
            f"it has weights for layer {max(adapter.blocks)}, and the model's {model.layers} layers"
            f" end with {model.layers - 1}"
        )
    return _shapes(adapter, model)


def _shapes(adapter: Adapter, model: Model) -> str | None:
    """The first matrix of the adapter that the model's has no place for."""
    shape = model.geometry()
    if shape is None:
        return None
    widths = {linear.name: (linear.inputs, linear.outputs) for linear in shape.linears()}
    for name, found in sorted(adapter.shapes.items()):
        layer, _, end = name.rpartition(".")
        sizes = next((size for key, size in widths.items() if layer.endswith(f".{key}")), None)
        if sizes is None or len(found) != 2 or end not in ("lora_a", "lora_b"):
            continue
        has, wants = (found[0], sizes[0]) if end == "lora_a" else (found[1], sizes[1])
        if has != wants:
            return f"{name} is made for a width of {has}, and the model's is {wants}"
    return None
