"""Each topology of benchmarks/wrong_topologies.yml is refused for its reason and served without its fault."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from splitrail.topology import TopologyError, load, serving
from splitrail.topology.memory import GB, GPU_BYTES

SCRIPT = Path(__file__).parents[1] / "benchmarks/wrong_topologies.py"
DATA = yaml.safe_load(SCRIPT.with_suffix(".yml").read_text())
# Wrong without any change: the topology is right and the site is not the one it is for.
ANOTHER_SITE = ("a topology of another platform", "more engines than the pool has nodes")


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wrong_topologies", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _script()


def case(what: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in DATA["wrong"] if one["what"] == what)
    return found


@pytest.mark.parametrize("wrong", DATA["wrong"], ids=lambda wrong: str(wrong["what"]))
def test_it_is_refused_for_its_reason(wrong: dict[str, Any]) -> None:
    assert wrong["says"] in script.refusal(wrong, DATA["sites"])


@pytest.mark.parametrize("wrong", DATA["wrong"], ids=lambda wrong: str(wrong["what"]))
def test_without_its_fault_it_is_served(wrong: dict[str, Any]) -> None:
    if wrong["what"] in ANOTHER_SITE:
        return
    assert script.refusal({**wrong, "change": {}, "where": {}}, DATA["sites"]) == ""


def test_there_are_thirty_and_each_is_another() -> None:
    assert len(DATA["wrong"]) >= 30
    assert len({one["says"] for one in DATA["wrong"]}) >= len(DATA["wrong"]) - 2  # three do not fit their GPU


def test_of_288_gb_it_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = case("a model that 288 GB would hold and 256 GB do not")
    # Eight engines of one GPU each would now be asked for; the memory is what is looked at.
    monkeypatch.setitem(GPU_BYTES, "mi325x", 288 * GB)
    assert script.refusal(wrong, DATA["sites"]) == ""


def test_a_fault_that_is_not_found_ends_the_script_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good = {"what": "nothing wrong", "topology": "qwen3-235b-1p3d", "says": "something"}
    data = tmp_path / "data.yml"
    data.write_text(yaml.safe_dump({"sites": DATA["sites"], "wrong": [good]}))
    monkeypatch.setattr(script, "DATA", data)
    monkeypatch.setattr("sys.argv", ["wrong_topologies.py"])
    assert script.main() == 1
    assert "nothing wrong (qwen3-235b-1p3d): NOT REFUSED\n\n0 of 1 refused" in capsys.readouterr().out


def test_the_documented_table_is_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["wrong_topologies.py", "--markdown"])
    assert script.main() == 0
    table = capsys.readouterr().out.partition("\n\n")[0]
    assert table in (script.ROOT / "docs/topologies.md").read_text()


def test_every_reason_is_named_at_once() -> None:
    topology = load("qwen3-235b-1p3d", script.ROOT / "inventories/topologies")
    topology["engine"] |= {"load_format": "dummy", "max_model_len": 50000}
    with pytest.raises(TopologyError) as error:
        serving(topology, script.site(DATA["sites"]["mi325x"]))
    assert "max_model_len 50000" in str(error.value)
    assert "load_format dummy" in str(error.value)
