"""The execution environment: its pins are the project's, and ansible-builder makes a build context of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FILE = ROOT / "execution-environment.yml"


@pytest.fixture(scope="module")
def definition() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def pins(text: str) -> set[str]:
    """The pinned requirements of a file, without markers."""
    return set(re.findall(r"^([\w-]+==[\w.]+)", text, re.MULTILINE))


def test_versions_are_those_of_the_controller(definition: dict[str, Any]) -> None:
    declared = pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    dependencies = definition["dependencies"]
    assert dependencies["ansible_core"]["package_pip"] in declared
    assert dependencies["ansible_runner"]["package_pip"] in declared


def test_the_runner_takes_the_image_that_the_definition_builds() -> None:
    said = re.search(r"ansible-builder build -t (\S+)", FILE.read_text(encoding="utf-8"))
    assert said
    navigator = yaml.safe_load((ROOT / "ansible-navigator.yml").read_text(encoding="utf-8"))
    assert navigator["ansible-navigator"]["execution-environment"]["image"] == said[1]
    version = re.search(r'^version = "(.+)"', (ROOT / "python/pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert said[1].endswith(f":{version[1]}")


def test_a_build_context_is_made_without_a_network(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("ansible-builder")
    words = [program, "create", "-f", FILE, "-c", tmp_path / "context"]
    words += ["--output-filename", "Containerfile"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "context/Containerfile").read_text()
    assert 'ANSIBLE_INSTALL_REFS="ansible-core==2.20.10 ansible-runner==2.4.3"' in text
    assert text.index("COPY _build/splitrail") < text.index("pip install --no-cache-dir /usr/src/splitrail")
    # The package is whole: what its build file names lies beside it.
    package = tmp_path / "context/_build/splitrail"
    for path in ("pyproject.toml", "README.md", "src/splitrail/cli.py", "src/splitrail/py.typed"):
        assert (package / path).is_file(), path
