"""What every role owes: specs equal to defaults, a table that is up to date, a scenario that can fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitrail import roles_doc

ROOT = Path(__file__).parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
NAMES = [role.name for role in ROLES]

# Variables of Ansible's own that roles may read: no facts. Facts are read through ansible_facts.
MAGIC = {
    *("ansible_facts", "ansible_check_mode", "ansible_diff_mode", "ansible_managed", "ansible_version"),
    *("ansible_failed_result", "ansible_failed_task", "ansible_loop", "ansible_loop_var"),
    *("ansible_play_hosts", "ansible_play_hosts_all", "ansible_play_batch", "ansible_playbook_python"),
    *("ansible_host", "ansible_user", "ansible_become", "ansible_connection", "ansible_remote_tmp"),
    "ansible_python_interpreter",
}


@pytest.fixture(params=ROLES, ids=NAMES)
def role(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(role: Path) -> dict[str, dict[str, Any]]:
    specs: dict[str, dict[str, Any]] = load(role / "meta/argument_specs.yml")["argument_specs"]["main"][
        "options"
    ]
    return specs


def disagreements(specs: dict[str, dict[str, Any]], defaults: dict[str, Any]) -> list[str]:
    """Where argument specs and defaults do not say the same."""
    found = [f"{name}: in defaults, not in the specs" for name in defaults.keys() - specs.keys()]
    for name, spec in specs.items():
        if spec.get("required"):
            if "default" in spec or name in defaults:
                found.append(f"{name}: required, and yet it has a default")
        elif "default" not in spec:
            found.append(f"{name}: neither required nor with a default")
        elif name not in defaults:
            found.append(f"{name}: in the specs, not in defaults")
        elif spec["default"] != defaults[name]:
            found.append(f"{name}: {spec['default']!r} in the specs, {defaults[name]!r} in defaults")
    return sorted(found)


def ansible_files(role: Path) -> Iterator[Path]:
    """What a role does, not what it says of itself (meta) nor what it copies as it is (files)."""
    for folder in ("defaults", "handlers", "tasks", "templates", "vars"):
        yield from sorted(path for path in (role / folder).rglob("*") if path.suffix in {".yml", ".j2"})


def code_of(path: Path) -> str:
    """A file's text without comment lines, which may speak of anything."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def test_specs_equal_defaults(role: Path) -> None:
    defaults = role / "defaults/main.yml"
    assert disagreements(options(role), (load(defaults) or {}) if defaults.exists() else {}) == []


@pytest.mark.parametrize(
    ("spec", "defaults", "wrong"),
    [
        ({"type": "str", "default": "a"}, {"r_x": "a"}, []),
        ({"type": "str", "required": True}, {}, []),
        ({"type": "str", "default": "a"}, {"r_x": "b"}, ["r_x: 'a' in the specs, 'b' in defaults"]),
        ({"type": "str", "default": "a"}, {}, ["r_x: in the specs, not in defaults"]),
        ({"type": "str"}, {"r_x": "a"}, ["r_x: neither required nor with a default"]),
        ({"type": "str", "required": True}, {"r_x": "a"}, ["r_x: required, and yet it has a default"]),
        ({"type": "str", "default": 1}, {"r_x": 1, "r_y": 2}, ["r_y: in defaults, not in the specs"]),
    ],
)
def test_disagreements_are_found(spec: dict[str, Any], defaults: dict[str, Any], wrong: list[str]) -> None:
    assert disagreements({"r_x": spec}, defaults) == wrong


def test_every_variable_is_prefixed_and_described(role: Path) -> None:
    for name, spec in options(role).items():
        assert name.startswith(f"{role.name}_")
        assert spec.get("type"), name
        assert spec.get("description"), name


def test_private_variables_are_prefixed(role: Path) -> None:
    """Names that a role registers or sets carry its name, and those it keeps to itself two underscores."""
    for path in ansible_files(role):
        code = code_of(path)
        for name in re.findall(r"^\s*register:\s*(\w+)", code, re.MULTILINE):
            assert name.startswith(f"__{role.name}_"), f"{path}: register: {name}"
    variables = role / "vars"
    for path in sorted(variables.glob("*.yml")) if variables.exists() else []:
        for name in load(path) or {}:
            assert name.startswith(f"__{role.name}_"), f"{path}: {name}"


def test_no_role_reads_another_roles_variables(role: Path) -> None:
    others = [name for name in NAMES if name != role.name and not role.name.startswith(f"{name}_")]
    foreign = re.compile(rf"\b_*(?:{'|'.join(others)})_\w+")
    for path in ansible_files(role):
        used = {
            name for name in foreign.findall(code_of(path)) if not name.strip("_").startswith(f"{role.name}_")
        }
        assert not used, f"{path}: {sorted(used)}"


def test_no_role_names_a_group_of_an_inventory(role: Path) -> None:
    for path in ansible_files(role):
        assert not re.search(r"\bgroups\s*[\[.]|\bgroup_names\b|\bgroups\.get\(", code_of(path)), path


def test_no_fact_by_its_top_level_name(role: Path) -> None:
    for path in ansible_files(role):
        used = set(re.findall(r"(?<![\w.'\"-])ansible_\w+", code_of(path)))
        assert used <= MAGIC, f"{path}: {sorted(used - MAGIC)}"


def test_readme_is_up_to_date(role: Path) -> None:
    assert not roles_doc.refresh(role, write=False), f"run `make docs`: {role.name}/README.md is out of date"


def test_meta(role: Path) -> None:
    info = load(role / "meta/main.yml")["galaxy_info"]
    assert info["description"]
    assert info["license"] == "Apache-2.0"
    assert load(role / "meta/main.yml").get("dependencies", []) == []


def test_every_role_has_a_scenario_that_can_fail(role: Path) -> None:
    scenario = ROOT / "molecule" / role.name
    for name in ("molecule.yml", "converge.yml", "break.yml"):
        assert (scenario / name).is_file(), f"{scenario / name} is missing: see molecule/README.md"
    tests = [path.read_text(encoding="utf-8") for path in (scenario / "tests").glob("test_*.py")]
    assert any("mark.broken" in text for text in tests), f"no test of {scenario} is marked `broken`"
    converge = (scenario / "converge.yml").read_text(encoding="utf-8")
    assert re.search(rf"\b(role|name): {role.name}$", converge, re.MULTILINE), (
        f"{scenario} applies another role"
    )


def test_scenarios_run_the_whole_sequence() -> None:
    """A step can be left out of the shared sequence, or by a scenario, only by changing this test as well."""
    config = load(ROOT / ".config/molecule/config.yml")
    assert config["scenario"]["test_sequence"] == [
        *("destroy", "syntax", "create", "prepare", "check", "converge", "idempotence", "verify"),
        *("side_effect", "side_effect ../shared/verify_broken.yml", "destroy"),
    ]
    for path in sorted((ROOT / "molecule").glob("*/molecule.yml")):
        assert "scenario" not in load(path), f"{path}: the sequence is shared"


def test_no_result_takes_the_name_of_a_roles_variable(role: Path) -> None:
    """What `register` and `set_fact` leave behind wins over vars/main.yml for the rest of the play."""
    variables = role / "vars/main.yml"
    known = set(load(variables) or {}) if variables.exists() else set()
    texts = [path.read_text(encoding="utf-8") for path in role.glob("tasks/*.yml")]
    registered = {name for text in texts for name in re.findall(r"^\s*register: (\w+)", text, re.MULTILINE)}
    facts = {
        name
        for text in texts
        for task in re.findall(r"ansible\.builtin\.set_fact:\n((?:[ ]{4,}.*\n)+)", text)
        for name in re.findall(r"^\s+(\w+):", task, re.MULTILINE)
    }
    assert known & (registered | facts) == set()
