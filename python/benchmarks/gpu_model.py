"""Write a folder that vLLM serves with dummy weights: Qwen3-14B's dimensions, and a small tokenizer.

usage: python gpu_model.py FOLDER

Wants transformers and tokenizers. The tokenizer knows 2,048 tokens, from which the benchmarks' prompts are
drawn; what the weights answer is noise, so only times can be measured with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "roles/model_store/files"))

# https://huggingface.co/Qwen/Qwen3-14B, config.json
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "initializer_range": 0.02,
    "use_cache": True,
}


def main() -> int:
    """Write the folder."""
    from generate_model import make_tokenizer  # noqa: PLC0415  # wants what the controller has not got

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(2048)
    tokenizer.save_pretrained(folder)
    config = {**CONFIG, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
