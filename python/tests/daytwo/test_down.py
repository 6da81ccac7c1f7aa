"""`down.yml`, run for real with roles that only say what they are asked for: the entrance holds or closes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SAYS = """
- name: Say it
  ansible.builtin.lineinfile:
    path: "{{ said }}"
    line: "%s"
    create: true
    mode: "0600"
"""
# What each role is asked for here, by its file of tasks.
ROLES = {
    "ingress/tasks/main.yml": "ingress {{ ingress_state }}",
    "ingress/tasks/share.yml": "ingress holds {{ ingress_hold_s }}",
    "llm_serve/tasks/main.yml": "llm_serve {{ llm_serve_state }}",
    "ray_cluster/tasks/main.yml": "ray_cluster {{ ray_cluster_state }}",
}


@pytest.mark.parametrize(
    ("entrance", "hold", "first"),
    [
        ("active", ["-e", "down_hold_s=300"], "ingress holds 300"),
        # An upgrade holds wherever there is an entrance; where nothing serves it is closed: no fault.
        ("inactive", ["-e", "down_hold_s=300"], "ingress stopped"),
        ("active", [], "ingress stopped"),
    ],
)
def test_the_entrance(tmp_path: Path, entrance: str, hold: list[str], first: str) -> None:
    for file, text in ROLES.items():
        (tmp_path / "roles" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "roles" / file).write_text(SAYS % text)
    (tmp_path / "down.yml").write_text((ROOT / "playbooks/down.yml").read_text(encoding="utf-8"))
    (tmp_path / "hosts.yml").write_text(
        f"all: {{vars: {{ansible_connection: local, ansible_python_interpreter: {sys.executable}}}, "
        "children: {head: {hosts: {here: {ingress_address: 192.0.2.1}}}}}\n"
    )
    (tmp_path / "ansible.cfg").write_text("")
    systemctl = tmp_path / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(f"#!/bin/sh\necho {entrance}\n[ {entrance} = active ]\n")
    systemctl.chmod(0o755)
    said = tmp_path / "said"
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "ansible-playbook"), "-i", "hosts.yml", "down.yml"),
            *("-e", f"said={said}", "-e", "ansible_become=false", *hold),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{systemctl.parent}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": "ansible.cfg",
        },
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert said.read_text().splitlines() == [first, "llm_serve absent", "ray_cluster stopped"]
