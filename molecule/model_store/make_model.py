"""Write the smallest folder that is a whole model: configuration, tokenizer, index, two weight files."""

import json
import sys
from pathlib import Path


def main() -> None:
    """Write it to the folder that is the first argument."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        header = json.dumps({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
        (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    index = {"weight_map": {name: name for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))


if __name__ == "__main__":
    main()
