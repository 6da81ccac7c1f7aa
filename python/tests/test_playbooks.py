"""Every playbook is understood by Ansible with every inventory."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PLAYBOOKS = ["site.yml", *sorted(f"playbooks/{path.name}" for path in (ROOT / "playbooks").glob("*.yml"))]
INVENTORIES = sorted(str(path.parent.relative_to(ROOT)) for path in ROOT.glob("inventories/*/hosts.yml"))


def syntax_check(inventory: str, *playbooks: str) -> subprocess.CompletedProcess[str]:
    # No run record: nothing runs.
    environment = {**os.environ, "ANSIBLE_CALLBACKS_ENABLED": "", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    return subprocess.run(
        ["ansible-playbook", "--syntax-check", "-i", inventory, *playbooks],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_syntax(inventory: str) -> None:
    """All playbooks in one call: most of the time goes into starting Ansible."""
    done = syntax_check(inventory, *PLAYBOOKS)
    assert done.returncode == 0, done.stderr
    for playbook in PLAYBOOKS:
        assert f"playbook: {playbook}" in done.stdout
    assert "[WARNING]" not in done.stderr


def test_the_check_finds_a_fault(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text("---\n- hosts: all\n  roles: [no_such_role]\n")
    done = syntax_check(INVENTORIES[0], str(broken))
    assert done.returncode != 0
    assert "no_such_role" in done.stderr


def test_every_verb_of_the_site_has_its_playbook() -> None:
    imported = [
        line.split("import_playbook:")[1].strip()
        for line in (ROOT / "site.yml").read_text(encoding="utf-8").splitlines()
        if "import_playbook:" in line
    ]
    assert imported == [
        f"playbooks/{verb}.yml"
        for verb in (
            *("preflight", "provision", "fabric", "image", "validate", "cluster", "serve", "smoke"),
            *("kv", "monitoring"),
        )
    ]
    for playbook in imported:
        assert (ROOT / playbook).is_file(), f"{playbook} is missing"


def included_roles(node: Any) -> Iterator[tuple[str, str]]:
    """Role and entry point of each include_role and import_role below ``node``."""
    if isinstance(node, list):
        for item in node:
            yield from included_roles(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("ansible.builtin.include_role", "ansible.builtin.import_role"):
                wanted = value.get("tasks_from", "main")
                # A template chooses among names that stand in it in quotes.
                names = re.findall(r"'(\w+)'", wanted) if "{{" in wanted else [wanted]
                loop = node.get("loop", [])
                loop = re.findall(r"'([a-z_]+)'", loop) if isinstance(loop, str) else loop
                roles = loop if "{{" in value["name"] else [value["name"]]
                yield from product(roles, names)
            yield from included_roles(value)


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_what_a_playbook_asks_of_a_role_is_an_entry_point(playbook: str) -> None:
    """Ansible checks the arguments of entry points in the role's specs, and runs other files unchecked."""
    for role, name in included_roles(yaml.safe_load((ROOT / playbook).read_text(encoding="utf-8"))):
        specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text(encoding="utf-8"))
        assert name in specs["argument_specs"], f"{playbook}: {role} has no entry point {name}"


def test_entry_points_are_found_in_templates_and_blocks() -> None:
    play = """
    - tasks:
        - block:
            - ansible.builtin.include_role: {name: a, tasks_from: "{{ 'one' if x else 'two' }}"}
        - ansible.builtin.import_role: {name: b}
        - ansible.builtin.include_role: {name: "{{ item }}", tasks_from: render}
          loop: [c, d]
    """
    found = [("a", "one"), ("a", "two"), ("b", "main"), ("c", "render"), ("d", "render")]
    assert list(included_roles(yaml.safe_load(play))) == found
