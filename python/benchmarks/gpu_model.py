"""Write a folder that vLLM serves with dummy weights: Qwen3-14B's dimensions, and a small tokenizer.

usage: python gpu_model.py FOLDER
       python gpu_model.py --time-unknown      ms to decode an answer's token, by the length of its prompt

Wants transformers and tokenizers. The tokenizer has learned 2,048 tokens, from which the benchmarks' prompts
are drawn; the rest of the model's vocabulary it knows by number, because dummy weights answer with any of it.
A token that a tokenizer does not know costs a server a walk over the whole prompt (``--time-unknown`` shows
it), which no real model's tokens do. What the weights answer is noise: only times can be measured with it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "roles/model_store/files"))

# https://huggingface.co/Qwen/Qwen3-14B, config.json
CONFIG: dict[str, Any] = {
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


LEARNED = 2048


def tokenizer_of(vocab_size: int) -> Any:
    """The small tokenizer, with a made-up word for each further token of the model's vocabulary."""
    # They want what the controller has not got.
    from generate_model import make_tokenizer  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    small = make_tokenizer(LEARNED)
    written = json.loads(small.backend_tokenizer.to_str())
    # The first letter is how byte-level BPE writes a space.
    written["model"]["vocab"] |= {f"\u0120t{number}": number for number in range(LEARNED, vocab_size)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(written)),
        eos_token=small.eos_token,
        pad_token=small.pad_token,
    )


def time_unknown() -> None:
    """Print a token's time, made to text as vLLM does it, with both tokenizers, as Markdown."""
    from generate_model import make_tokenizer  # noqa: PLC0415  # as above
    from tokenizers.decoders import DecodeStream  # noqa: PLC0415

    known, unknown = tokenizer_of(CONFIG["vocab_size"]), make_tokenizer(LEARNED)
    sys.stdout.write("| tokens of the prompt | known token, ms | unknown token, ms |\n|---|---|---|\n")
    for length in (1000, 3000, 8000):
        cells = []
        for tokenizer in (known, unknown):
            stream = DecodeStream(
                ids=[10 + number % 2000 for number in range(length)], skip_special_tokens=True
            )
            stream.step(tokenizer.backend_tokenizer, 100_000)
            began = time.perf_counter()
            for _ in range(100):
                stream.step(tokenizer.backend_tokenizer, 100_000)
            cells.append(f"{10 * (time.perf_counter() - began):.3f}")
        sys.stdout.write(f"| {length} | {' | '.join(cells)} |\n")


def main() -> int:
    """Write the folder."""
    if sys.argv[1] == "--time-unknown":
        time_unknown()
        return 0
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(CONFIG["vocab_size"])
    tokenizer.save_pretrained(folder)
    config = {**CONFIG, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
