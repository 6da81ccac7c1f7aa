"""What the role preflight says of hosts that were cloned: each learns which others carry its machine-id."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VERIFY = ROOT / "roles/preflight/tasks/verify.yml"


def said(folder: Path, ids: dict[str, str]) -> dict[str, str]:
    """What the role's own tasks say of hosts with these machine-ids, without a look at any."""
    _, look, verdict = yaml.safe_load(VERIFY.read_text(encoding="utf-8"))
    assert "splitrail_verdict" in verdict
    assert verdict["vars"]["__preflight_unique"]["ok"] == "{{ __preflight_twins | length == 0 }}"
    content = "{{ __preflight_unique.measured }}"
    tasks = [
        look,
        {
            "ansible.builtin.copy": {
                "content": content,
                "dest": f"{folder}/{{{{ inventory_hostname }}}}.said",
            },
            "vars": verdict["vars"],
        },
    ]
    play = {"hosts": "all", "gather_facts": False, "connection": "local", "tasks": tasks}
    hosts = {host: {"__preflight_node": {"machine_id": number}} for host, number in ids.items()}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    (folder / "p.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "hosts.yml", "p.yml"],
        cwd=folder,
        env={**os.environ, "ANSIBLE_PYTHON_INTERPRETER": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {host: (folder / f"{host}.said").read_text() for host in ids}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (
            {"a": "1", "b": "2", "c": "1", "d": "3", "e": "2", "f": "1"},
            {
                "a": "shared with c, f",
                "b": "shared with e",
                "c": "shared with a, f",
                "d": "unique",
                "e": "shared with b",
                "f": "shared with a, c",
            },
        ),
        ({"a": "1", "b": "2"}, {"a": "unique", "b": "unique"}),
        ({"a": "1"}, {"a": "unique"}),
    ],
)
def test_each_host_learns_who_shares_its_id(
    tmp_path: Path, ids: dict[str, str], expected: dict[str, str]
) -> None:
    assert said(tmp_path, ids) == expected
