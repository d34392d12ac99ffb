"""What cannot work is refused at submit, over the API: the field, both sides, and the way out.

One site holds the store that all cases look at: they submit what is refused, so none disturbs
another.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from scheduler.models import Job
from tests.integration.web.site import DATASET, MODEL, Site, safetensors
from tests.integration.web.test_pages import signed_in

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}
KEYS = ("self_attn.q_proj", "self_attn.v_proj")
WIDTHS = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 32)}
BYTE_LEVEL = {
    "model": {"type": "BPE", "vocab": {}, "merges": []},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
}


def model(weights: list[int], tokenizer: Any = BYTE_LEVEL, **config: Any) -> dict[str, bytes]:
    return {
        **MODEL,
        "config.json": json.dumps({**LLAMA, **config}).encode(),
        "model.safetensors": safetensors({"w": weights}),
        "tokenizer.json": json.dumps(tokenizer).encode(),
    }


def lora(rank: int = 8, layers: tuple[int, ...] = (2, 3), extra: str = "") -> dict[str, bytes]:
    """An adapter as mlx-lm lays it out, on two of four layers."""
    shapes: dict[str, list[int]] = {}
    for layer in layers:
        for key in KEYS:
            inputs, outputs = WIDTHS[key]
            name = f"model.layers.{layer}.{key}"
            shapes[f"{name}.lora_a"] = [inputs, rank]
            shapes[f"{name}.lora_b"] = [rank, outputs]
    weights = safetensors(shapes)
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": rank, "keys": list(KEYS)}}
    files = {"adapter_config.json": json.dumps(config).encode(), "adapters.safetensors": weights}
    return files | ({f"{extra}_adapters.safetensors": weights} if extra else {})


ROWS = {
    "chat": b'{"messages": [{"role": "user", "content": "a"},'
    b' {"role": "assistant", "content": "b"}]}\n',
    "text": b'{"text": "once upon a time"}\n',
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("refusals")
    shutil.copy(migrated_sqlite, directory / "espalier.db")
    site = Site(f"sqlite:///{directory / 'espalier.db'}", directory, None)
    strange = {**BYTE_LEVEL, "pre_tokenizer": {"type": "Whitespace"}}
    artifacts: dict[str, tuple[str, dict[str, bytes], dict[str, Any]]] = {
        "base": ("model", model([2, 2]), {}),
        "other": ("model", model([4, 4]), {}),
        "wide": ("model", model([6, 6], hidden_size=128), {}),
        "qwen": ("model", model([8, 8], model_type="qwen2"), {}),
        "three": ("model", model([3, 3], quantization={"bits": 3, "group_size": 64}), {}),
        "four": ("model", model([5, 5], quantization={"bits": 4, "group_size": 64}), {}),
        "mamba": ("model", model([7, 7], model_type="mamba"), {}),
        "strange": ("model", model([9, 9], tokenizer=strange), {}),
        "sql": ("dataset", DATASET, {}),
        "prose": ("dataset", {"train.jsonl": ROWS["text"] * 8}, {}),
        "few": ("dataset", {"train.jsonl": ROWS["chat"] * 3}, {}),
        "lora": ("adapter", lora(extra="0000100"), {"parents": ["team/base"]}),
        "bare": ("adapter", lora(), {"parents": ["team/base"]}),
        "rank16": ("adapter", lora(rank=16), {}),
    }
    for name, (kind, files, more) in artifacts.items():
        made = site.ada.publish(directory / name, f"team/{name}", kind, files, **more)
        assert made.status_code == 201, made.get_data(as_text=True)
    yield site
    site.close()


TRAIN = {"kind": "train", "model": "team/base", "data": "team/sql"}
AGAIN = {
    **TRAIN,
    "resume_adapter_file": "team/lora",
    "num_layers": 2,
    "lora_parameters": {"keys": list(KEYS)},
}


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        # Going on from an adapter of something else names both.
        ({**AGAIN, "model": "team/other"}, "resume_adapter_file", ["team/base@v1", "team/other"]),
        ({**AGAIN, "model": "team/four"}, "resume_adapter_file", ["team/base@v1", "team/four@v1"]),
        (
            {**AGAIN, "resume_adapter_file": "team/rank16"},
            "resume_adapter_file",
            ["has rank 16", "rank is 8"],
        ),
        (
            {**AGAIN, "lora_parameters": {"keys": ["self_attn.q_proj", "mlp.up_proj"]}},
            "resume_adapter_file",
            ["self_attn.q_proj, self_attn.v_proj", "mlp.up_proj, self_attn.q_proj"],
        ),
        (
            {**AGAIN, "lora_parameters": {}},
            "resume_adapter_file",
            ["self_attn.v_proj", "mlp.down_proj, mlp.gate_proj"],
        ),
        ({**AGAIN, "num_layers": -1}, "resume_adapter_file", ["layers 2 to 3", "0 to 3"]),
        ({**AGAIN, "fine_tune_type": "dora"}, "resume_adapter_file", ["lora", "dora"]),
        # What mlx-lm cannot train.
        ({**TRAIN, "model": "team/three", "fine_tune_type": "dora"}, "fine_tune_type", ["3-bit"]),
        (
            {**TRAIN, "model": "team/four", "fine_tune_type": "full"},
            "fine_tune_type",
            ["no gradients", "quantized to 4 bits"],
        ),
        (
            {**TRAIN, "lora_parameters": {"keys": ["attn.q_proj"]}},
            "keys",
            ["team/base@v1 has no attn.q_proj"],
        ),
        # Data that is not there, or not of the kind.
        ({**TRAIN, "data": "team/prose", "mask_prompt": True}, "mask_prompt", ["rows of text"]),
        (
            {"kind": "train", "model": "team/base", "mask_prompt": True,
             "hf_dataset": {"path": "team/sql", "text_feature": "prompt"}},
            "mask_prompt",
            ["text_feature"],
        ),
        ({**TRAIN, "data": "team/few", "test": True}, "test", ["no test.jsonl"]),
        ({**TRAIN, "data": "team/few"}, "batch_size", ["3 rows, fewer than batch_size 4"]),
        (
            {"kind": "train", "model": "team/base",
             "hf_dataset": [{"path": "team/sql", "valid_split": "valid"},
                            {"path": "team/prose", "valid_split": "validation[:50%]"}]},
            "hf_dataset",
            ["team/prose@v1 has no valid.jsonl"],
        ),
        # Evals and fuses.
        (
            {"kind": "eval", "model": "team/qwen", "adapter": "team/lora", "data": "team/sql"},
            "adapter",
            ["a llama, and the model is a qwen2"],
        ),
        (
            {"kind": "fuse", "model": "team/wide", "adapter": "team/rank16"},
            "adapter",
            ["made for a width of 64", "the model's is 128"],
        ),
        (
            {"kind": "fuse", "model": "team/qwen", "adapters": ["team/bare", "team/lora"]},
            "adapters",
            ["team/lora@v1 does not fit team/qwen@v1"],
        ),
        (
            {"kind": "eval", "model": "team/base", "data": "team/prose"},
            "split",
            ["no test.jsonl"],
        ),
        (
            {"kind": "eval", "model": "team/base", "adapter": "team/bare", "data": "team/sql",
             "sweep": True},
            "sweep",
            ["team/bare@v1 has no checkpoints"],
        ),
        # Quantizations and exports.
        ({"kind": "quantize", "model": "team/four"}, "model", ["quantized to 4 bits already"]),
        (
            {"kind": "quantize", "model": "team/mamba", "method": "awq", "data": "team/sql"},
            "method",
            ["awq", "mamba"],
        ),
        ({"kind": "export", "model": "team/mamba"}, "model", ["'mamba'"]),
        ({"kind": "export", "model": "team/strange"}, "model", ["Whitespace"]),
        ({"kind": "export", "model": "team/base", "type": "q4_k_m"}, "type", ["256", "64"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_naming_field_and_both_sides(
    store: Site, spec: dict[str, Any], field: str, said: list[str]
) -> None:
    answer = store.ada.post("/jobs", {"spec": spec})
    assert answer.status_code == 422, answer.json
    body: Any = answer.json
    found = [e for e in body["errors"] if e["loc"][-1] == field]
    assert found, body
    told = " ".join(e["msg"] for e in found)
    assert [words for words in said if words not in told] == [], told
    assert body["hint"]
    with store.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0, "nothing was submitted"


def test_what_fits_is_submitted(store: Site) -> None:
    """Asked of the check itself, so that no job is left in the store that the others share."""
    from espalier.specs import JobRequest, parse
    from scheduler.access import SYSTEM
    from scheduler.refusals.check import check

    for spec in (
        AGAIN,
        {**TRAIN, "model": "team/four"},
        {**TRAIN, "model": "team/four", "fine_tune_type": "dora"},
        {"kind": "eval", "model": "team/base", "adapter": "team/lora", "data": "team/sql",
         "sweep": True},
        {"kind": "fuse", "model": "team/four", "adapter": "team/lora"},
        {"kind": "quantize", "model": "team/four", "requantize": True},
        {"kind": "export", "model": "team/base", "type": "q8_0"},
        {"kind": "train", "model": "hf:org/model", "data": "hf:org/data", "fine_tune_type": "full"},
    ):  # fmt: skip
        request = parse(JobRequest, {"spec": spec})
        assert check(store.database, store.services.blobs, SYSTEM, request) == [()], spec
    longer = parse(JobRequest, {"spec": {**TRAIN, "data": "team/prose", "max_seq_length": 8192}})
    ((context, valid),) = check(store.database, store.services.blobs, SYSTEM, longer)
    assert "more than the 4096 tokens" in context
    assert "no valid.jsonl" in valid


def test_a_step_is_judged_by_what_the_steps_before_it_will_make(store: Site) -> None:
    steps = [
        {"step": "small", "spec": {"kind": "quantize", "model": "team/base", "q_bits": 3}},
        {"step": "train", "spec": {**TRAIN, "model": "step:small", "fine_tune_type": "dora"}},
        {"step": "fuse", "spec": {"kind": "fuse", "model": "team/qwen", "adapter": "step:train"}},
        {"step": "again", "spec": {"kind": "quantize", "model": "step:small"}},
    ]
    answer = store.ada.post("/pipelines", {"steps": steps})
    assert answer.status_code == 422
    errors = {tuple(e["loc"]): e["msg"] for e in answer.get_json()["errors"]}
    assert "step:small, which has 3-bit weights" in errors["steps", 1, "spec", "fine_tune_type"]
    assert "a llama, and the model is a qwen2" in errors["steps", 2, "spec", "adapter"]
    assert "step:small is quantized to 3 bits already" in errors["steps", 3, "spec", "model"]


def test_a_hubs_repository_in_an_unchanged_config_is_answered_with_how_it_is_written(
    store: Site,
) -> None:
    spec = {**TRAIN, "model": "mlx-community/Llama-3.2-1B-Instruct-4bit"}
    answer = store.ada.post("/jobs", {"spec": spec})
    assert answer.status_code == 404
    assert "written hf:mlx-community/Llama-3.2-1B-Instruct-4bit" in answer.get_json()["hint"]


def test_nothing_is_told_of_what_one_may_not_see(store: Site) -> None:
    answer = store.eve.post("/jobs", {"spec": {"kind": "quantize", "model": "team/four"}})
    assert answer.status_code == 404
    assert "bits" not in answer.get_data(as_text=True)


def test_remarks_are_part_of_the_jobs_story(site: Site) -> None:
    site.ada.publish(site.directory / "m", "team/base", "model", model([2, 2]))
    site.ada.publish(site.directory / "d", "team/sql", "dataset", DATASET)
    answer: Any = site.ada.post("/jobs", {"spec": {**TRAIN, "max_seq_length": 8192}}).json
    events: Any = site.ada.get(f"/jobs/{answer['id']}/events").json
    told = [event["message"] for event in events["events"] if event["type"] == "notice"]
    assert len(told) == 1
    assert "max_seq_length 8192 is more than the 4096 tokens" in told[0]


def test_the_form_marks_the_field(site: Site) -> None:
    site.ada.publish(site.directory / "m", "team/four", "model",
                     model([5, 5], quantization={"bits": 4, "group_size": 64}))  # fmt: skip
    site.ada.publish(site.directory / "d", "team/sql", "dataset", DATASET)
    page = signed_in(site).post(
        "/submit",
        {"kind": "train", "train.kind": "train", "train.model": "team/four",
         "train.data": "team/sql", "train.fine_tune_type": "full"},
        page="/submit",
    )  # fmt: skip
    assert page.status_code == 422
    assert "has no gradients" in page.get_data(as_text=True)
