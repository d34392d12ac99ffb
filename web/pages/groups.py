"""Which of a form's folded settings stand together, under which words."""

from collections.abc import Sequence

from espalier.states import Kind
from web.pages.fields import FormField

_MEMORY = ("Memory", "grad_checkpoint micro_batch_size on_oom clear_cache_threshold")
_FEATURES = "prompt_feature completion_feature text_feature chat_feature"
_TEXT = ("Text it is measured on", "data test_batches batch_size max_seq_length seed")
#: Kind → titles with the first words of their fields' keys, in the order shown.
GROUPS: dict[Kind, tuple[tuple[str, str], ...]] = {
    Kind.TRAIN: (
        ("Optimizer", "optimizer optimizer_config lr_schedule grad_accumulation_steps"),
        ("Adapter", "lora_parameters resume_adapter_file"),
        ("Data", f"mask_prompt order packing seed hf_dataset {_FEATURES}"),
        (
            "Validation and checkpoints",
            "val_batches steps_per_report steps_per_eval save_every keep early_stopping_patience"
            " early_stopping_min_delta divergence_limit test test_batches",
        ),
        _MEMORY,
        ("Told elsewhere", "report_to project_name"),
    ),
    Kind.EVAL: (
        (
            "Rows",
            f"batch_size test_batches max_seq_length mask_prompt bootstrap seed {_FEATURES}",
        ),
        ("Checkpoints", "move_best"),
        (
            "Answers",
            "samples max_tokens temp top_p min_p top_k stop answer_after chat_template_config",
        ),
        (
            "How they are judged",
            "normalize_whitespace ignore_case pattern json_schema json_schema_feature sql_schema"
            " sql_schema_feature",
        ),
        _MEMORY,
    ),
    Kind.QUANTIZE: (
        ("Weights", "q_mode quant_predicate dtype requantize publish"),
        (
            "Methods that learn from text",
            "calibration num_samples sequence_length learning_rate embed_bits embed_group_size"
            " n_grid fallback_bits fallback_group_size target_bpw high_bits high_group_size",
        ),
        _TEXT,
        _MEMORY,
    ),
    Kind.FUSE: (
        ("Adapters", "adapters output"),
        ("Limits of the proof", "max_kl max_perplexity_difference"),
        _TEXT,
        _MEMORY,
    ),
    Kind.EXPORT: (
        ("Files", "types side_by_side pre_tokenizer writer"),
        (
            "Proof",
            "data proof_prompts proof_tokens min_token_match max_perplexity_difference seed",
        ),
        ("Memory", "on_oom"),
    ),
}

Group = tuple[str, tuple[FormField, ...]]


def grouped(kind: Kind, fields: Sequence[FormField]) -> tuple[Group, ...]:
    """Return the fields under their titles, in order; what belongs nowhere comes last."""
    left = {field.name: field for field in fields}
    found: list[Group] = []
    for title, keys in GROUPS[kind]:
        names = [n for key in keys.split() for n in left if n.split(".")[1] == key]
        if names:
            found.append((title, tuple(left.pop(name) for name in names)))
    return (*found, ("More", tuple(left.values()))) if left else tuple(found)
