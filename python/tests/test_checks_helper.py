"""The helper that travels to the nodes is loaded from its file, as Ansible does, not from a package."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import splitrail
from splitrail.verdict import Check

FILE = Path(splitrail.__file__).parent / "ansible/module_utils/splitrail_checks.py"


@pytest.fixture
def helper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("splitrail_checks", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_checks_are_those_of_the_contract(helper: ModuleType) -> None:
    made = helper.check("preflight.memory", "RAM", True, 32, 16, unit="GiB", hint="Add memory.")
    assert Check(host="n1", **made).model_dump(exclude={"host"}) == made


def test_a_check_that_could_not_be_made_is_not_ok(helper: ModuleType) -> None:
    made = helper.unmade(
        "preflight.clock", "ntp", "chronyc is missing", "synchronized", hint="Install chrony."
    )
    assert made["ok"] is False
    assert made["measured"] == "could not be checked: chronyc is missing"


@pytest.mark.parametrize(
    ("name", "subject", "ok"), [("", "RAM", True), ("a.b", "", True), ("a.b", "RAM", "no")]
)
def test_a_malformed_check_is_refused(helper: ModuleType, name: str, subject: str, ok: object) -> None:
    with pytest.raises(ValueError, match="check"):
        helper.check(name, subject, ok, 1, 1)


def test_it_needs_the_standard_library_only() -> None:
    tree = ast.parse(FILE.read_text(encoding="utf-8"), feature_version=(3, 10))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).partition(".")[0] for name in modules} <= sys.stdlib_module_names
