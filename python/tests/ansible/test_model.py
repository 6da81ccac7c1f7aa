"""Every finding of splitrail_model, on folders that are whole and folders that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.modules.splitrail_model import INDEX, SINGLE, examine


def safetensors(path: Path, values: int, *, lost: int = 0) -> None:
    """Write a weight file of that many float32 values, with the last bytes lost."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4 * values)
    path.write_bytes(content[: len(content) - lost])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model with one weight file."""
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    (tmp_path / "tokenizer.json").write_text("{}")
    safetensors(tmp_path / SINGLE, 4)
    return tmp_path


def failed(folder: Path) -> list[dict[str, Any]]:
    """The checks that are not ok; the fingerprint must be empty exactly then."""
    checks, fingerprint = examine(folder, True)
    bad = [check for check in checks if not check["ok"]]
    assert bool(bad) != bool(fingerprint)
    return bad


def test_a_whole_model_passes(folder: Path) -> None:
    assert failed(folder) == []


def test_each_file_of_the_index_must_be_there(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "a.safetensors")
    (folder / INDEX).write_text('{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}')
    (bad,) = failed(folder)
    assert bad["subject"].endswith("b.safetensors")


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": {}}', "no json"])
def test_an_index_that_says_nothing_fails(folder: Path, index: str) -> None:
    (folder / INDEX).write_text(index)
    (bad,) = failed(folder)
    assert bad["subject"].endswith(INDEX)


@pytest.mark.parametrize("lost", [1, 16, 40])
def test_a_weight_file_cut_short_fails(folder: Path, lost: int) -> None:
    safetensors(folder / SINGLE, 4, lost=lost)
    (bad,) = failed(folder)
    assert bad["name"] == "model_store.weights"


def test_an_empty_weight_file_fails(folder: Path) -> None:
    (folder / SINGLE).write_bytes(b"")
    assert len(failed(folder)) == 1


@pytest.mark.parametrize("text", ["{}", '{"architectures": []}', "[]", ""])
def test_a_configuration_without_architecture_fails(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    (bad,) = failed(folder)
    assert bad["name"] == "model_store.config"


def test_a_model_without_tokenizer_fails(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (bad,) = failed(folder)
    assert bad["name"] == "model_store.tokenizer"


def test_a_missing_folder_is_one_finding_with_a_cure(tmp_path: Path) -> None:
    (bad,) = failed(tmp_path / "none")
    assert "model_store_path" in bad["hint"]


def test_the_fingerprint_follows_the_weights_if_asked(folder: Path) -> None:
    before = {hashed: examine(folder, hashed)[1] for hashed in (True, False)}
    content = bytearray((folder / SINGLE).read_bytes())
    content[-1] ^= 1
    (folder / SINGLE).write_bytes(content)
    assert examine(folder, True)[1] != before[True]
    assert examine(folder, False)[1] == before[False]


def test_the_fingerprint_follows_the_tokenizer_and_its_name(folder: Path) -> None:
    before = examine(folder, False)[1]
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    renamed = examine(folder, False)[1]
    (folder / "vocab.json").write_text("{ }")
    assert len({before, renamed, examine(folder, False)[1]}) == 3
