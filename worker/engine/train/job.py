"""Training: LoRA, DoRA and full fine-tunes, as ``mlx_lm.lora --train`` runs them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import build_schedule, linear_to_lora_layers
from mlx_lm.utils import save_config

from espalier.specs import TrainSpec
from espalier.states import ArtifactKind
from worker.engine import data
from worker.engine.adapters import load_adapter
from worker.engine.collection import open_data
from worker.engine.measure import Limits, measure, seed_everything
from worker.engine.models import Loaded, facts, load_model
from worker.engine.report import BadInput, Job, log, write_json
from worker.engine.train import checkpoints, packing, survey
from worker.engine.train.best import hand_out
from worker.engine.train.loop import Loop
from worker.engine.train.order import Epochs

_OPTIMIZERS = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "muon": optim.Muon,
    "sgd": optim.SGD,
    "adafactor": optim.Adafactor,
}


#: What mlx-lm's own configuration does not know, and an adapter's does not need.
_NOT_MLX_LM = {
    *("kind", "resume_adapter_file", "micro_batch_size", "on_oom", "order", "packing", "keep"),
    *("early_stopping_patience", "early_stopping_min_delta", "divergence_limit"),
}


def run(job: Job) -> None:
    """Train, announcing checkpoints as they come and the adapter at the end."""
    spec = job.task.spec
    assert isinstance(spec, TrainSpec)
    job.report.phase("loading")
    seed_everything(spec.seed)
    loaded = load_model(job.need("model"))
    splits = _load_splits(job, spec, loaded.tokenizer)
    job.orders.check()

    mx.random.seed(spec.seed)
    num_layers = _clamp_layers(job, spec, loaded.model)
    _make_trainable(loaded, spec, num_layers)
    if start := job.input("adapter"):
        _start_from(loaded.model, start / "adapters.safetensors")
    adapter = job.output("adapter")
    config = adapter_config(spec, num_layers)
    save_config(config, adapter / "adapter_config.json")
    _log_size(loaded.model)

    batches = make_batches(spec)
    if spec.packing:
        _check_packing(job, spec, loaded.model, splits["train"])
    optimizer = make_optimizer(spec)
    progress = checkpoints.Progress()
    if job.task.resume_dir:
        resume = Path(job.task.resume_dir)
        progress = checkpoints.restore(resume, adapter, loaded.model, optimizer, batches)
        job.report.notice(f"Resumed from the checkpoint of step {progress.step}.")
    loop = Loop(job, spec, loaded.model, optimizer, batches, progress, adapter)
    loop.run(splits["train"], splits.get("valid"))

    job.report.phase("saving")
    step = hand_out(loaded.model, adapter, progress.step, progress.best, spec.keep)
    write_json(adapter / "adapter_config.json", config | {"step": step})
    if spec.test:
        load_adapter(loaded.model, adapter / "adapters.safetensors")
        _test(job, spec, loaded.model, splits["test"], batches.validating(), step)
    job.report.output("adapter", ArtifactKind.ADAPTER, adapter, _meta(spec, loaded, progress, step))


def make_batches(spec: TrainSpec) -> data.Batches:
    """Return what draws the training batches, in the order that the spec asks for."""
    if spec.order == "mlx-lm":
        return data.Batches(spec.seed)
    capacity = spec.max_seq_length if spec.packing else None
    return Epochs(spec.seed, bucketed=spec.order == "bucketed", capacity=capacity)


def _check_packing(job: Job, spec: TrainSpec, model: Any, dataset: Any) -> None:
    """Refuse what packing would spoil, and say what it makes of the data."""
    lengths = [packing.room(len(dataset[i][0]), spec.max_seq_length) for i in range(len(dataset))]
    packs = len(packing.pack(spec.seed, 0, lengths, spec.max_seq_length))
    if packs < spec.batch_size:
        raise BadInput(
            f"train.jsonl fills {packs} sequences of max_seq_length {spec.max_seq_length}, fewer"
            f" than batch_size {spec.batch_size}.",
            f"Set batch_size to {packs} or less, lower max_seq_length, or leave packing off.",
        )
    differs = packing.check(model, dataset, spec.max_seq_length)
    job.report.notice(
        f"Packed: {len(dataset):,} rows are {packs:,} sequences of up to {spec.max_seq_length:,}"
        f" tokens, so an epoch is {packs // spec.batch_size:,} steps. Packed and alone, rows'"
        f" losses differ by {differs:.1g} nats."
    )


def _load_splits(job: Job, spec: TrainSpec, tokenizer: Any) -> Mapping[str, Any]:
    """Return the splits this spec needs, as tokens, checked and told of; raises BadInput."""
    splits = {}
    wanted = {"train": True, "valid": spec.val_batches != 0, "test": spec.test}
    for name in (name for name, is_wanted in wanted.items() if is_wanted):
        dataset = open_data(job, name, tokenizer, spec)
        if dataset is None:
            _without(job, spec, name)
            continue
        data.check_size(name, dataset, spec.batch_size)
        splits[name] = dataset
    return survey.read(job, splits, spec.max_seq_length)


def _without(job: Job, spec: TrainSpec, split: str) -> None:
    if split == "valid" and spec.early_stopping_patience is None:
        job.report.notice(
            "The data set has no valid.jsonl: training goes on without validation.", "warning"
        )
        return
    raise BadInput(
        f"The data set has no {split}.jsonl.",
        "Push a folder with train.jsonl and valid.jsonl"
        + {
            "train": ".",
            "valid": ", or leave early_stopping_patience empty: it counts validations.",
            "test": ", and test.jsonl, or leave test off.",
        }[split],
    )


def _clamp_layers(job: Job, spec: TrainSpec, model: Any) -> int:
    """Return how many layers to train; mlx-lm raises where the model has fewer."""
    has = len(model.layers)
    if spec.num_layers > has:
        job.report.notice(
            f"num_layers {spec.num_layers} is more than the model's {has} layers: all {has} are"
            " trained."
        )
        return has
    return spec.num_layers


def lora_parameters(spec: TrainSpec) -> dict[str, Any]:
    """mlx-lm's ``lora_parameters``; ``keys`` only where the spec names some."""
    found = spec.lora_parameters.model_dump(exclude_none=True)
    if "keys" in found:
        found["keys"] = list(found["keys"])
    return found


def _make_trainable(loaded: Loaded, spec: TrainSpec, num_layers: int) -> None:
    """Freeze the model and open what is trained, as ``mlx_lm.lora.train_model`` does."""
    quantization = loaded.quantization
    if quantization and spec.fine_tune_type == "full":
        raise BadInput(
            f"A full fine-tune of a {quantization['bits']}-bit model has no gradients: quantized"
            " weights cannot be trained.",
            "Use fine_tune_type lora, or an unquantized model.",
        )
    if quantization and spec.fine_tune_type == "dora" and 32 % quantization["bits"]:
        raise BadInput(
            f"DoRA on a {quantization['bits']}-bit model fails in mlx-lm: its layers take only"
            " 2, 4 and 8 bits.",
            "Use fine_tune_type lora, or a model of another width.",
        )
    model = loaded.model
    model.freeze()
    if spec.fine_tune_type == "full":
        for layer in model.layers[-max(num_layers, 0) :]:
            layer.unfreeze()
        return
    _check_keys(model, spec)
    linear_to_lora_layers(
        model, num_layers, lora_parameters(spec), use_dora=spec.fine_tune_type == "dora"
    )


def _start_from(model: Any, path: Path) -> None:
    """Load the adapter that a run starts from; BadInput unless it has just what is trained."""
    load_adapter(model, path)
    has, trained = (
        set(mx.load(str(path))),
        {n for n, _ in tree_flatten(model.trainable_parameters())},
    )
    if has == trained:
        return
    missing, more = sorted(trained - has), sorted(has - trained)
    raise BadInput(
        f"resume_adapter_file has {len(has)} weights, and this run trains {len(trained)}:"
        + (f" {missing[0]} is not in the adapter." if missing else "")
        + (f" {more[0]} of the adapter is not trained here." if more else ""),
        "Use the num_layers, fine_tune_type and lora_parameters.keys that the adapter was trained"
        " with.",
    )


def _check_keys(model: Any, spec: TrainSpec) -> None:
    keys = spec.lora_parameters.keys
    if keys is None:
        return
    modules = {name for layer in model.layers for name, _ in layer.named_modules()}
    modules |= {name for name, _ in model.named_modules()}
    unknown = [key for key in keys if key not in modules]
    if unknown:
        linear = sorted({n for n, m in model.layers[0].named_modules() if "weight" in m})
        raise BadInput(
            f"lora_parameters.keys names {', '.join(unknown)}, which the model does not have.",
            f"A layer has {', '.join(linear)}.",
        )


def make_optimizer(spec: TrainSpec) -> Any:
    """Build the optimizer with its schedule; raises BadInput for settings it does not take."""
    rate: Any = spec.learning_rate
    settings = dict(spec.optimizer_config.get(spec.optimizer, {}))
    try:
        if spec.lr_schedule:
            rate = build_schedule(spec.lr_schedule.model_dump())
        return _OPTIMIZERS[spec.optimizer](learning_rate=rate, **settings)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"optimizer_config or lr_schedule does not fit {spec.optimizer}: {error}.",
            "Their keys are those of mlx.optimizers.",
        ) from error


def adapter_config(spec: TrainSpec, num_layers: int) -> dict[str, Any]:
    """Return ``adapter_config.json`` as mlx-lm writes it, with references where it has paths."""
    config = spec.model_dump(mode="json", exclude=_NOT_MLX_LM)
    config = {key: value for key, value in config.items() if value is not None}
    full = spec.fine_tune_type == "full"
    return config | {
        "num_layers": num_layers,
        "lora_parameters": None if full else lora_parameters(spec),
        "adapter_path": "adapters",
        "resume_adapter_file": None,
        "lr_schedule": config.get("lr_schedule"),
        "train": True,
    }


def _log_size(model: Any) -> None:
    trained = sum(value.size for _, value in tree_flatten(model.trainable_parameters()))
    log.info("%.3f M trainable parameters", trained / 1e6)


def _test(
    job: Job, spec: TrainSpec, model: Any, dataset: Any, batches: data.Batches, step: int
) -> None:
    """Measure the test split after training, as ``mlx_lm.lora --train --test`` does."""
    job.report.phase("testing")
    limits = Limits.of(spec)
    measured = measure(job, model, dataset, limits, batches)
    job.report.metrics(step, **measured.metrics())


def _meta(
    spec: TrainSpec, loaded: Loaded, progress: checkpoints.Progress, step: int
) -> dict[str, Any]:
    """What the registry keeps of a run; ``step`` is that of the weights handed out."""
    best = progress.best
    trained = sum(value.size for _, value in tree_flatten(loaded.model.trainable_parameters()))
    return {
        "fine_tune_type": spec.fine_tune_type,
        "iters": spec.iters,
        "step": step,
        "last_step": progress.step,
        "best_step": best.step,
        "best_val_loss": best.loss,
        "stopped_early": best.stopped and progress.step < spec.iters,
        "trained_parameters": int(trained),
        "base": facts(loaded),
    }
