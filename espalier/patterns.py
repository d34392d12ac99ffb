"""What is asked of the public hub: which files, and with whose token."""

#: Where a person's own token for that hub goes: into no body, no address, no log.
UPSTREAM_HEADER = "X-Upstream-Token"
#: Weights and text, nothing a loader could run.
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
