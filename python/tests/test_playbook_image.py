"""The verb `image` for a release that builds none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTS = """
all:
  vars:
    ansible_connection: local
    serving_image_distribution: shared_store
    serving_image_release: >-
      {{ lookup('ansible.builtin.file', playbook_dir ~ '/../inventories/releases/h200.yml') | from_yaml }}
  children:
    head: {hosts: {h1: }}
"""


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ([], 2, "set serving_image_ref"),
        (["-e", "serving_image_ref=r.example.org/s@sha256:0"], 0, "is taken as it stands"),
    ],
)
def test_a_host_that_has_the_release_builds_nothing(
    tmp_path: Path, given: list[str], code: int, said: str
) -> None:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    done = subprocess.run(
        ["ansible-playbook", "-i", str(tmp_path / "hosts.yml"), "playbooks/image.yml", *given],
        cwd=ROOT,
        env={**os.environ, "SPLITRAIL_RUN_DIR": str(tmp_path / "record")},
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert said in " ".join((done.stdout + done.stderr).split())
    assert "serving_image : " not in done.stdout
