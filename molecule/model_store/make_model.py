"""Write a small folder that is a whole model: configuration, tokenizer, index, two weight files, sums."""

import hashlib
import json
import random
import sys
from pathlib import Path

VALUES = 1 << 20  # 4 MiB a file


def main() -> None:
    """Write it to the folder that is the first argument."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for number, name in enumerate(names):
        tensor = {"dtype": "F32", "shape": [VALUES], "data_offsets": [0, 4 * VALUES]}
        header = json.dumps({name: tensor}).encode()
        weights = random.Random(number).randbytes(4 * VALUES)  # noqa: S311  weights, no secret
        (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + weights)
    index = {"weight_map": {name: name for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in folder.iterdir()]
    (folder / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
