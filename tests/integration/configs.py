"""Configs of models that tests reason about without their weights."""

#: A Llama of 1.2 billion weights, as its config.json has it.
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 16,
    "vocab_size": 128_256,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
