"""Which files of a hub's repository are of use: weights and text, nothing a loader could run."""

MODEL_FILES = (
    "*.safetensors",
    "*.json",
    "*.jsonl",
    "*.jinja",
    "*.tiktoken",
    "*.txt",
    "tokenizer.model",
)
DATA_FILES = ("*.jsonl", "*.json")
