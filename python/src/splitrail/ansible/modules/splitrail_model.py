#!/usr/bin/python
"""Check that a folder holds a whole model, and fingerprint it so that nodes can be compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_model
short_description: Check that a folder holds a whole model
description:
  - Looks for the configuration, a tokenizer and every weight file of the index, and reports all findings.
  - Changes nothing, in check mode or not.
options:
  path:
    description: The model's folder.
    type: path
    required: true
  hash_weights:
    description:
      - Whether the fingerprint covers the bytes of the weights; otherwise it covers their sizes, which is
        fast for hundreds of GiB and finds what was cut short but not what was altered.
    type: bool
    required: true
author: The splitrail authors
"""

RETURN = r"""
checks:
  description: The findings, for M(splitrail_verdict).
  returned: always
  type: list
  elements: dict
fingerprint:
  description: SHA-256 over the model's files, equal on nodes that hold the same model; empty if not whole.
  returned: always
  type: str
"""

Check = dict[str, Any]

CONFIG = "config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SUFFIXES = (".json", ".jinja", ".model", ".safetensors", ".txt")
CHUNK = 1024**2
COPY_HINT = "Copy the model again, whole, to this node."


def load(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises OSError or ValueError when there is none."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def check_config(folder: Path) -> list[Check]:
    """config.json names the architecture, by which an engine chooses its code."""
    name, subject, wanted = "model_store.config", str(folder / CONFIG), "a list of architectures"
    try:
        found = load(folder / CONFIG).get("architectures")
    except (OSError, ValueError) as why:
        return [unmade(name, subject, str(why), wanted, hint=COPY_HINT)]
    return [check(name, subject, bool(found), found or "none", wanted, hint=COPY_HINT)]


def check_tokenizer(folder: Path) -> list[Check]:
    """A tokenizer lies beside the weights."""
    found = [name for name in TOKENIZERS if (folder / name).is_file()]
    return [
        check(
            "model_store.tokenizer",
            str(folder),
            bool(found),
            ", ".join(found) or "none",
            f"one of {', '.join(TOKENIZERS)}",
            hint=COPY_HINT,
        )
    ]


def weight_files(folder: Path) -> list[str]:
    """Names of the weight files: those of the index, or the single file. Raises OSError or ValueError."""
    if not (folder / INDEX).is_file():
        return [SINGLE]
    weight_map = load(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{INDEX} has no weight_map")
    return sorted(set(map(str, weight_map.values())))


def check_weight(path: Path) -> list[Check]:
    """A safetensors file is as long as its header says, so a copy that was cut short shows."""
    name, subject = "model_store.weights", str(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                return [check(name, subject, False, size, 8 + length, unit="bytes", hint=COPY_HINT)]
            header = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for key, tensor in header.items() if key != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as why:
        return [unmade(name, subject, str(why), "a whole safetensors file", hint=COPY_HINT)]
    return [check(name, subject, size == wanted, size, wanted, unit="bytes", hint=COPY_HINT)]


def fingerprint(folder: Path, hash_weights: bool) -> str:
    """SHA-256 over names and contents (of weights perhaps only sizes) of the model's files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()):
        total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        if path.suffix == ".safetensors" and not hash_weights:
            continue
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                total.update(chunk)
    return total.hexdigest()


def examine(folder: Path, hash_weights: bool) -> tuple[list[Check], str]:
    """All findings about the folder, and its fingerprint if it is whole."""
    if not folder.is_dir():
        hint = "Copy the model there, or correct model_store_path and model_store_name."
        return [check("model_store.present", str(folder), False, "no such folder", "a folder", hint=hint)], ""
    checks = check_config(folder) + check_tokenizer(folder)
    try:
        checks += [found for name in weight_files(folder) for found in check_weight(folder / name)]
    except (OSError, ValueError) as why:
        index = str(folder / INDEX)
        checks.append(unmade("model_store.weights", index, str(why), "an index", hint=COPY_HINT))
    whole = all(each["ok"] for each in checks)
    return checks, fingerprint(folder, hash_weights) if whole else ""


def main() -> None:
    """Examine the folder that Ansible named."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "hash_weights": {"type": "bool", "required": True},
        },
        supports_check_mode=True,
    )
    checks, found = examine(Path(module.params["path"]), module.params["hash_weights"])
    module.exit_json(changed=False, checks=checks, fingerprint=found)


if __name__ == "__main__":
    main()
