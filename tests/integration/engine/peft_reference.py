"""Makes ``data/peft``: adapters as PEFT itself saves them, and the logits it computes with them.

Run by hand where torch, transformers and peft are installed (made with peft 0.21.2, transformers
5.23.0, torch 2.15.0), from the repository's root::

    python -m tests.integration.engine.peft_reference [CHECK_DIR]

The model's weights are numbers from a seed, so only adapters and logits are kept. With CHECK_DIR,
adapters that `espalier.peft.to_peft` wrote there are loaded by PEFT and their logits printed
against those of the adapters they were made from.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data" / "peft"
TOKENS = [[1, 7, 30, 2, 19, 44, 3, 11]]
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "vocab_size": 48,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_BLOCK = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (48, 32),
    "mlp.up_proj": (48, 32),
    "mlp.down_proj": (32, 48),
}
#: What LoraConfig is given for each case.
CASES: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": ["q_proj", "o_proj", "up_proj", "lm_head"],
        "rank_pattern": {"o_proj": 2, r"layers\.1\.mlp\.up_proj": 3},
        "alpha_pattern": {"o_proj": 5},
        "layers_to_transform": None,
    },
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": "all-linear"},
    "embedding": {"r": 2, "lora_alpha": 6, "target_modules": ["embed_tokens", "k_proj"]},
}


def weights() -> dict[str, Any]:
    """The model's tensors, float32; numpy keeps RandomState's streams for ever."""
    random = np.random.RandomState(20261121)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (48, 32),
        "lm_head.weight": (48, 32),
        "model.norm.weight": (32,),
    }
    for block in range(2):
        prefix = f"model.layers.{block}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in _BLOCK.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (32,)
    return {
        name: (random.randn(*shape) * (0.1 if len(shape) == 1 else 0.25)).astype(np.float32)
        + np.float32(len(shape) == 1)
        for name, shape in sorted(shapes.items())
    }


def main() -> None:
    peft: Any
    torch: Any
    transformers: Any
    peft, torch, transformers = map(import_module, ("peft", "torch", "transformers"))

    def base() -> Any:
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
        model.load_state_dict({name: torch.tensor(value) for name, value in weights().items()})
        return model.eval()

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model(torch.tensor(TOKENS)).logits[0].float().numpy()

    said = {}
    if len(sys.argv) > 1:
        told = json.loads((DATA / "logits.json").read_text())
        for folder in sorted(Path(sys.argv[1]).iterdir()):
            model = peft.PeftModel.from_pretrained(base(), str(folder)).eval()
            apart = np.abs(logits(model) - np.array(told[folder.name])).max()
            sys.stdout.write(f"{folder.name}: {apart:.3g}\n")
        return
    for name, keys in CASES.items():
        config = peft.LoraConfig(task_type="CAUSAL_LM", **keys)
        model = peft.get_peft_model(base(), config)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            noise = torch.randn(parameter.shape) * 0.1
            parameter.data = parameter.data + noise if parameter.ndim == 1 else noise
        model.eval()
        model.save_pretrained(DATA / name, save_embedding_layers=False)
        (DATA / name / "README.md").unlink()
        said[name] = [[round(float(x), 6) for x in row] for row in logits(model)]
    said["base"] = [[round(float(x), 6) for x in row] for row in logits(base())]
    (DATA / "logits.json").write_text(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
