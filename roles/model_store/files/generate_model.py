"""Make a small Qwen3 with random weights, a tokenizer and a chat template. Runs inside the serving image.

Every byte is the same on every machine: the weights come from integer random numbers and one multiplication
each, where a normal distribution would depend on how a CPU's vector unit rounds; the tokenizer is trained on
one thread, on a text that ships with Python.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the text of Python's own help topics."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise SystemExit(
            f"the text gives {tokenizer.get_vocab_size()} tokens, not {vocab_size}: lower vocab_size"
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END_OF_TEXT)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def fill(model: Qwen3ForCausalLM, seed: int) -> None:
    """Give each parameter uniform values of variance 1/fan_in (norms: one), so that logits differ clearly."""
    for name, parameter in sorted(model.named_parameters()):
        if parameter.dim() == 1:
            torch.nn.init.ones_(parameter)
            continue
        # A generator per name: adding a layer leaves the other weights as they are.
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
        steps = generator.integers(-(2**23), 2**23, size=tuple(parameter.shape), dtype=np.int32)
        scale = np.float32(math.sqrt(3.0 / parameter.shape[-1]) / 2**23)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(steps.astype(np.float32) * scale))


def main() -> None:
    """Write the model to a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--hidden-size", type=int, default=64, help="a multiple of 32")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=4096, help="tokens")
    arguments = parser.parse_args()
    if arguments.hidden_size % 32:
        parser.error("--hidden-size must be a multiple of 32")

    # The tokenizers library reads this when it trains.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = make_tokenizer(arguments.vocab_size)
    config = Qwen3Config(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=4 * arguments.hidden_size,
        num_hidden_layers=arguments.layers,
        # 32 is the smallest head that vLLM's CPU attention takes.
        head_dim=32,
        num_attention_heads=2 * (arguments.hidden_size // 32),
        num_key_value_heads=arguments.hidden_size // 32,
        max_position_embeddings=arguments.max_length,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config).to(torch.float32)
    fill(model, arguments.seed)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    for path in arguments.out.iterdir():
        path.chmod(0o644)  # safetensors writes for its owner only; engines need not run as root


if __name__ == "__main__":
    main()
