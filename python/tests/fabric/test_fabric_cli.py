"""`splitrail fabric prove` and `report`, as far as they need no node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitrail.cli import app

from .test_mesh_checks import mesh, reading


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    (tmp_path / "site.yml").write_text("[]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_newest_mesh_is_drawn_again(project: Path) -> None:
    folder = project / "runs/20261121T120000Z"
    mesh("ab").save(folder)
    done = CliRunner().invoke(app, ["fabric", "report"])
    assert done.exit_code == 0, done.output
    assert (folder / "fabric.html").is_file()
    assert "mesh of 2 nodes" in done.output


def test_a_mesh_that_failed_says_so_by_its_code_and_names_the_link(project: Path) -> None:
    result = mesh("ab")
    reading(result, "a", "b").gbps = 12.0
    result.save(project / "runs/one")
    done = CliRunner().invoke(app, ["fabric", "report", "one"])
    assert done.exit_code == 1
    assert "rail0, a -> b" in done.output


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("arguments", [["fabric", "report"], ["fabric", "report", "none"]])
def test_no_mesh_is_could_not_run(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "mesh" in done.output


@pytest.mark.usefixtures("project")
def test_prove_without_an_inventory_could_not_run() -> None:
    done = CliRunner().invoke(app, ["fabric", "prove", "-i", "nowhere", "--json"])
    assert done.exit_code == 2
    assert json.loads(done.stdout)["exit_code"] == 2


def test_a_sample_of_nobody_is_a_wrong_call() -> None:
    assert CliRunner().invoke(app, ["fabric", "prove", "--sample", "0"]).exit_code == 2
