"""``--explain``: a table for people, JSON for programs, and nothing is submitted."""

import json

from sqlalchemy import func, select

from scheduler.models import Job
from tests.integration.cli.conftest import Terminal
from tests.integration.web.site import MODEL

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "num_hidden_layers": 24,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def test_explain_prints_a_table_and_submits_nothing(terminal: Terminal) -> None:
    site = terminal.site.with_inputs()
    files = {**MODEL, "config.json": json.dumps(CONFIG).encode()}
    made = site.ada.publish(site.directory / "m2", "team/qwen", "model", files)
    assert made.status_code == 201, made.json
    site.worker("studio-1")
    train = ("train", "--model", "team/qwen", "--data", "team/sql", "--explain")
    train += ("--max-seq-length", "512")
    told = terminal.run(*train).stdout
    for word in ("weights", "activations", "in all", "studio-1", "GiB", "Fits studio-1."):
        assert word in told, told
    found = terminal.json(*train, "--batch-size", "2")
    assert found["needs"] < terminal.json(*train)["needs"]
    told = terminal.run("quantize", "--model", "team/base", "--explain").stdout
    assert "cannot be told" in told
    with site.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0
