"""Rules of a training: a function each, over what is known of its inputs."""

from collections.abc import Iterable

from espalier.specs import TrainSpec, numbered
from espalier.specs.collection import Part, parts
from scheduler.refusals.facts import Adapter, Data, Known, Model, Refusal, Refusals

#: Bits whose weights mlx-lm's DoRA can unpack: 32 of them lie in a whole number.
_DORA_BITS = (2, 4, 8)


def refusals(spec: TrainSpec, known: Known) -> Refusals:
    """Yield every reason why this training cannot work."""
    if known.model:
        yield from full_on_quantized(spec, known.model)
        yield from dora(spec, known.model)
        yield from keys(spec, known.model)
    yield from masked_text(spec, known)
    yield from splits(spec, known)
    start = known.adapters.get("adapter")
    if start:
        yield from resume_method(spec, start)
        yield from resume_rank(spec, start)
        yield from resume_keys(spec, start, known.model)
        yield from resume_blocks(spec, start, known.model)
        if known.model:
            yield from resume_base(start, known.model)


def warnings(spec: TrainSpec, known: Known) -> Iterable[str]:
    """Yield what will work and is probably not meant."""
    context = known.model.context if known.model else None
    if known.model and context and spec.max_seq_length > context:
        yield (
            f"max_seq_length {spec.max_seq_length} is more than the {context} tokens that"
            f" {known.model.label} was made for: longer rows are learnt badly."
        )
    data = known.data.get("data")
    if data and not spec.hf_dataset and spec.val_batches and "valid" not in data.rows:
        yield f"{data.label} has no valid.jsonl: this run has no validation loss, and no best."


# --- The model ----------------------------------------------------------------------------


def full_on_quantized(spec: TrainSpec, model: Model) -> Refusals:
    if spec.fine_tune_type == "full" and model.quantization:
        yield Refusal(
            "fine_tune_type",
            f"a full fine-tune of {model.label} has no gradients: its weights are quantized"
            f"{_at(model)}",
            "Use fine_tune_type lora, or an unquantized model.",
        )


def dora(spec: TrainSpec, model: Model) -> Refusals:
    if spec.fine_tune_type != "dora":
        return
    if model.bits is not None and model.bits not in _DORA_BITS:
        yield Refusal(
            "fine_tune_type",
            f"DoRA on {model.label}, which has {model.bits}-bit weights, fails in mlx-lm: its"
            " layers take 2, 4 and 8 bits",
            "Use fine_tune_type lora, or a model of another width.",
        )
    if model.experts and spec.lora_parameters.keys is None:
        yield Refusal(
            "fine_tune_type",
            f"{model.label} is a mixture of experts, and mlx-lm has no DoRA for experts",
            "Use fine_tune_type lora, or name other layers in lora_parameters.keys.",
        )


def keys(spec: TrainSpec, model: Model) -> Refusals:
    """``keys`` that no layer has, where the architecture is known by name."""
    shape = model.geometry()
    if spec.lora_parameters.keys is None or shape is None or spec.fine_tune_type == "full":
        return
    has = [linear.name for linear in shape.linears()]
    outside = ("lm_head", "model.")
    unknown = [
        key for key in spec.lora_parameters.keys if key not in has and not key.startswith(outside)
    ]
    if unknown:
        yield Refusal(
            "lora_parameters.keys",
            f"{model.label} has no {', '.join(unknown)} in its layers",
            f"A layer of {model.type} has {', '.join(has)}.",
        )


def _at(model: Model) -> str:
    return f" to {model.bits} bits" if model.bits else ""


# --- The data -----------------------------------------------------------------------------


def masked_text(spec: TrainSpec, known: Known) -> Refusals:
    if not spec.mask_prompt:
        return
    for role, data in known.data.items():
        if data.format == "text":
            yield Refusal(
                "mask_prompt",
                f"{data.label} has rows of text, which have no prompt to be masked",
                "Leave mask_prompt off, or use rows with prompt and completion, or messages.",
            )
        elif data.format and _reads_text(spec, role):
            yield Refusal(
                "mask_prompt",
                "text_feature makes a text of each row, which has no prompt to be masked",
                "Leave mask_prompt off, or name prompt_feature and completion_feature.",
            )


def _reads_text(spec: TrainSpec, role: str) -> bool:
    """Say whether the features of a role's data name a text and nothing that comes before it."""
    places = {numbered("data", n): item for n, item in enumerate(spec.hf_dataset, 1)}
    features = places.get(role, spec)
    others = (features.prompt_feature, features.completion_feature, features.chat_feature)
    return bool(features.text_feature) and not any(others)


def splits(spec: TrainSpec, known: Known) -> Refusals:
    """Splits that are asked for and not there, or have too few rows for one batch."""
    wanted = {"train": True, "valid": bool(spec.val_batches), "test": spec.test}
    for split in (name for name, is_wanted in wanted.items() if is_wanted):
        if spec.hf_dataset:
            yield from _collection(spec, known, split)
        elif data := known.data.get("data"):
            if split not in data.rows:
                yield from _missing(data, split)
            elif not (spec.packing and split == "train"):
                yield from _few(spec, f"{split}.jsonl of {data.label}", data.rows[split])


def _missing(data: Data, split: str) -> Refusals:
    if split == "valid":  # mlx-lm trains without
        return
    field, way = ("test", ", or leave test off") if split == "test" else ("data", "")
    yield Refusal(
        field, f"{data.label} has no {split}.jsonl", f"Push it with a {split}.jsonl{way}."
    )


def _few(spec: TrainSpec, where: str, rows: int) -> Refusals:
    if rows < spec.batch_size:
        yield Refusal(
            "batch_size",
            f"{where} has {rows} rows, fewer than batch_size {spec.batch_size}",
            f"Set batch_size to {rows} or less, or add rows.",
        )


def _collection(spec: TrainSpec, known: Known, split: str) -> Refusals:
    total: int | None = 0
    for number, item in enumerate(spec.hf_dataset, 1):
        data, text = known.data.get(numbered("data", number)), item.split(split)
        if data is None or text is None:
            total = None
            continue
        found = [_rows(part, data) for part in parts(text)]
        for part, rows in zip(parts(text), found, strict=True):
            if rows is None:
                yield Refusal(
                    "hf_dataset",
                    f"{data.label} has no {part.split}.jsonl, and {split}_split is {text!r}",
                    "Name another split, or push one with that file.",
                )
        here = sum(rows or 0 for rows in found)
        total = None if total is None or None in found else total + here
    if total is not None and not (spec.packing and split == "train"):
        yield from _few(spec, f"{split}_split", total)


def _rows(part: Part, data: Data) -> int | None:
    return len(part.rows(data.rows[part.split])) if part.split in data.rows else None


# --- The adapter to go on from ------------------------------------------------------------

_RESUME = "resume_adapter_file"


def resume_base(start: Adapter, model: Model) -> Refusals:
    base = start.base
    if base is None or not base.identity or not model.identity or base.identity == model.identity:
        return
    yield Refusal(
        _RESUME,
        f"{start.label} was trained on {base.label}, and model is {model.label}, whose weights are"
        " others",
        f"Train {base.label} on, or begin anew: leave resume_adapter_file out.",
    )


def resume_method(spec: TrainSpec, start: Adapter) -> Refusals:
    if start.method != spec.fine_tune_type:
        yield Refusal(
            _RESUME,
            f"{start.label} is of fine_tune_type {start.method}, and this run is"
            f" {spec.fine_tune_type}",
            f"Set fine_tune_type to {start.method}.",
        )


def resume_rank(spec: TrainSpec, start: Adapter) -> Refusals:
    rank = spec.lora_parameters.rank
    if spec.fine_tune_type != "full" and start.rank is not None and start.rank != rank:
        yield Refusal(
            _RESUME,
            f"{start.label} has rank {start.rank}, and lora_parameters.rank is {rank}",
            f"Set lora_parameters.rank to {start.rank}.",
        )


def resume_keys(spec: TrainSpec, start: Adapter, model: Model | None) -> Refusals:
    """Layers' names: mlx-lm leaves those that the adapter lacks at nothing, without a word."""
    if spec.fine_tune_type == "full" or start.keys is None:
        return
    shape = model.geometry() if model else None
    trained = frozenset(spec.lora_parameters.keys or ())
    if not trained and shape:
        trained = frozenset(linear.name for linear in shape.linears())
    if trained and trained != start.keys:
        yield Refusal(
            _RESUME,
            f"{start.label} has the layers {_listed(start.keys)}, and this run trains"
            f" {_listed(trained)}",
            f"Set lora_parameters.keys to {_listed(start.keys)}.",
        )


def resume_blocks(spec: TrainSpec, start: Adapter, model: Model | None) -> Refusals:
    layers = model.layers if model else None
    if layers is None or start.blocks is None:
        return
    count = layers if spec.num_layers == -1 else min(spec.num_layers, layers)
    if start.blocks != frozenset(range(layers - count, layers)):
        yield Refusal(
            _RESUME,
            f"{start.label} has layers {_span(start.blocks)} of the model, and num_layers"
            f" {spec.num_layers} trains {_span(range(layers - count, layers))}",
            f"Set num_layers to {layers - min(start.blocks)}.",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _span(blocks: Iterable[int]) -> str:
    found = sorted(blocks)
    return f"{found[0]} to {found[-1]}" if len(found) > 1 else str(found[0])
