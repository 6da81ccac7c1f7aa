"""What the node is asked to compare: the digest of what the template action itself places."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
# Rendered with trim_blocks, and with an own newline at the end.
TEMPLATE = (
    "# {{ ansible_managed }}\n{% for name in groups['all'] %}\n{{ name }}={{ made_of }}\n{% endfor %}\n"
)


def placed_and_looked(folder: Path, **file: Any) -> dict[str, Any]:
    """Place templates/a.j2 as Ansible does, and look for ``file`` in its place; returns the look's result."""
    (folder / "templates").mkdir()
    (folder / "templates/a.j2").write_text(TEMPLATE)
    dest = str(folder / "placed")
    sought = {"dest": dest, "mode": "0644", **file}
    # A look that fails is a result too, which the test reads.
    tasks = [
        {"ansible.builtin.template": {"src": "a.j2", "dest": dest, "mode": "0644"}},
        {"splitrail_in_place": {"files": [sought]}, "register": "look", "ignore_errors": True},
        {"ansible.builtin.copy": {"content": "{{ look | to_json }}", "dest": f"{dest}.look", "mode": "0644"}},
    ]
    play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
    play["vars"] = {"made_of": "{{ other }} words", "other": "two"}
    (folder / "p.yml").write_text(yaml.safe_dump([play]))
    where = ROOT / "python/src/splitrail/ansible"
    environment = {
        "ANSIBLE_ACTION_PLUGINS": str(where / "action"),
        "ANSIBLE_LIBRARY": str(where / "modules"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "a,", "-c", "local", "p.yml"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    look: dict[str, Any] = json.loads((folder / "placed.look").read_text())
    return look


@pytest.mark.skipif(os.getuid() != 0, reason="the look wants files of root, and says nothing else of others")
@pytest.mark.parametrize(
    ("file", "other"),
    [
        ({"src": "a.j2"}, False),
        ({"content": "# Ansible managed\na=two words\n"}, False),
        ({"content": "# Ansible managed\na=two words"}, True),
        # Of both the text counts: a role says it where a template cannot.
        ({"src": "a.j2", "content": "none"}, True),
    ],
)
def test_a_file_is_compared_with_what_would_be_placed(
    tmp_path: Path, file: dict[str, str], other: bool
) -> None:
    look = placed_and_looked(tmp_path, **file)
    assert look["differs"] == ([f"{tmp_path}/placed: other content"] if other else [])


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    look = placed_and_looked(tmp_path, src="none.j2")
    assert look["failed"]
    assert "none.j2" in look["msg"]
