"""Shipped inventories pass; copies made bad in one way are refused at once, with file, key and cure."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

from splitrail.inventory.check import check
from splitrail.inventory.fault import InventoryError
from splitrail.inventory.vocabulary import load
from splitrail.project import Project
from splitrail.render import render
from splitrail.run.execute import execute
from splitrail.run.playbook import CannotRun, Options

ROOT = Path(__file__).parents[3]
PROJECT = Project(ROOT)
SHIPPED = sorted(path.parent for path in ROOT.glob("inventories/*/hosts.yml"))


def _mutate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", Path(__file__).with_name("mutate.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutate = _mutate()
KNOWN = load(ROOT)


@pytest.mark.parametrize("inventory", SHIPPED, ids=lambda path: str(path.name))
def test_shipped_inventories_pass(inventory: Path) -> None:
    assert check(PROJECT, str(inventory)).hosts


@pytest.mark.parametrize("name", mutate.GOOD)
def test_a_copy_passes_as_long_as_nothing_is_made_bad(name: str, tmp_path: Path) -> None:
    check(PROJECT, str(mutate.copy(name, tmp_path)))


def refused(root: Path, what: str, draw: random.Random) -> None:
    try:
        bad = mutate.MUTATIONS[what](root, draw, KNOWN)
    except mutate.Skip:
        assume(False)
    began = time.process_time()
    with pytest.raises(InventoryError) as caught:
        check(PROJECT, str(root))
    assert time.process_time() - began < 1, "1 s of CPU at most"
    named = [fault for fault in caught.value.faults if bad.file in fault.file and bad.key in str(fault)]
    assert named, f"{bad}: {caught.value}"
    assert all(fault.cure and "; cure: " in str(fault) for fault in caught.value.faults)
    assert "hunter2" not in str(caught.value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    what=st.sampled_from(sorted(mutate.MUTATIONS)),
    name=st.sampled_from(mutate.GOOD),
    seed=st.integers(0, 2**32),
)
def test_every_bad_inventory_is_refused(tmp_path: Path, what: str, name: str, seed: int) -> None:
    refused(mutate.copy(name, tmp_path), what, random.Random(seed))  # noqa: S311  # no secret


@pytest.mark.parametrize("what", sorted(mutate.MUTATIONS))
def test_every_kind_of_mutation_can_be_made(tmp_path: Path, what: str) -> None:
    """On the reference cluster or the lab, so that no kind is skipped in silence."""
    for name in ("mi325x", "lab"):
        draw = random.Random(7)  # noqa: S311
        try:
            mutate.MUTATIONS[what](mutate.copy(name, tmp_path), draw, KNOWN)
        except mutate.Skip:
            continue
        refused(mutate.copy(name, tmp_path), what, random.Random(7))  # noqa: S311
        return
    pytest.fail(f"{what} applies to neither")


def test_no_verb_starts_ansible_with_a_bad_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a verb nor render nor status; and no run record is made."""
    marker = tmp_path / "ansible-was-started"
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("ansible-playbook", "ansible-inventory", "ssh"):
        (tools / name).write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    root = tmp_path / "project"
    for folder in ("roles", "playbooks"):
        shutil.copytree(ROOT / folder, root / folder)
    for file in ("ansible.cfg", "site.yml"):
        shutil.copy(ROOT / file, root / file)
    project = Project(root)
    inventory = mutate.copy("lab", root)
    mutate.no_head(inventory, random.Random(1), KNOWN)  # noqa: S311
    options = Options(inventory=str(inventory))
    console = Console(quiet=True)
    with pytest.raises(CannotRun, match="no host was contacted"):
        execute(project, "serve", "playbooks/serve.yml", options, resume=False, console=console)
    with pytest.raises(CannotRun, match="exactly one host"):
        render(project, options, tmp_path / "out")
    assert not marker.exists()
    assert not (root / "runs").exists()


def test_a_misspelt_extra_variable_is_refused_without_its_value() -> None:
    inventory = str(ROOT / "inventories/lab")
    options = Options(inventory=inventory, extra_vars=("llm_serve_mdoe=hunter2",))
    with pytest.raises(CannotRun, match=r"-e: llm_serve_mdoe: .* did you mean llm_serve_mode\?") as caught:
        execute(PROJECT, "serve", "playbooks/serve.yml", options, resume=False, console=Console(quiet=True))
    assert "hunter2" not in str(caught.value)
    check(PROJECT, inventory, {"llm_serve_mode": "aggregated", "fabric_waiver": "one host only"})


def test_ansible_alone_refuses_it_too(tmp_path: Path) -> None:
    """The first play of the bring-up, without the command line of the suite."""
    marker = tmp_path / "ssh-was-run"
    (tmp_path / "ssh").write_text(f"#!/bin/sh\ntouch {marker}\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    inventory = mutate.copy("lab", tmp_path)
    path = inventory / "group_vars/all/checks.yml"
    path.write_text(path.read_text().replace("preflight_shm_gib: 2", "preflight_shm_gib: two"))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), "playbooks/preflight.yml"],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "SPLITRAIL_RUN_DIR": str(tmp_path / "record"),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert 'preflight_shm_gib: is "two"; allowed: a number' in done.stdout.replace('\\"', '"')
    assert not marker.exists()
