"""Many hosts are changed in batches, which the inventory may choose; few are one batch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitrail.ansible.filter.splitrail_ramp import RAMP, splitrail_ramp

ROOT = Path(__file__).parents[3]
# What looks at all hosts together cannot be cut.
PLAYS = {"provision": "Provision the nodes", "fabric": "Configure the rails"}


def plays(verb: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.safe_load(
        (ROOT / f"playbooks/{verb}.yml").read_text(encoding="utf-8")
    )
    return loaded


def test_few_hosts_are_one_batch() -> None:
    assert splitrail_ramp(["h"] * 19) == ["100%"]
    assert splitrail_ramp(["h"] * 20) == RAMP == ["1", "10%", "50%", "100%"]


def batches(folder: Path, *more: str, failing: str = "") -> tuple[list[list[str]], int]:
    """The batches that the play of provision.yml is made in, on four hosts, and the exit code."""
    begin, play = plays("provision")[:2]
    play["become"] = False
    fail = {"ansible.builtin.fail": {}, "when": f"inventory_hostname == '{failing}'"}
    play["tasks"] = [{"ansible.builtin.debug": {"msg": "batch {{ ansible_play_batch | join(',') }}."}}, fail]
    (folder / "p.yml").write_text(yaml.safe_dump([begin, play]))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "hosts.yml", "p.yml", *more],
        cwd=folder,
        env={**os.environ, "ANSIBLE_FILTER_PLUGINS": str(ROOT / "python/src/splitrail/ansible/filter")},
        capture_output=True,
        text=True,
        check=False,
    )
    seen = list(dict.fromkeys(re.findall(r"batch ([\w,]+)\.", done.stdout)))
    return [one.split(",") for one in seen], done.returncode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yml").write_text(
        "all:\n  vars: {ansible_connection: local, splitrail_serial: [1, '50%', '100%']}\n"
        "  hosts: {n1: , n2: , n3: , n4: }\n"
    )
    return tmp_path


def test_the_inventory_chooses_the_batches_and_the_first_host_comes_last(folder: Path) -> None:
    assert batches(folder) == ([["n4"], ["n3", "n2"], ["n1"]], 0)


def test_a_batch_with_too_many_failures_ends_the_verb(folder: Path) -> None:
    assert batches(folder, failing="n4") == ([["n4"]], 2)


@pytest.mark.parametrize("verb", PLAYS)
def test_both_verbs_that_change_each_host_for_itself_have_it(verb: str) -> None:
    keys = ("order", "serial", "max_fail_percentage")
    found = {play["name"]: [play.get(key) for key in keys] for play in plays(verb)}
    assert found[PLAYS[verb]] == [plays("provision")[1][key] for key in keys]
    # Before the first play nothing is known of the inventory.
    assert list(found).index(PLAYS[verb]) > 0
