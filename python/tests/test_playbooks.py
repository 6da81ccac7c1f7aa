"""Every playbook is understood by Ansible with every inventory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

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
        for verb in ("preflight", "provision", "fabric", "image", "validate", "cluster", "serve", "smoke")
    ]
    for playbook in imported:
        assert (ROOT / playbook).is_file(), f"{playbook} is missing"
