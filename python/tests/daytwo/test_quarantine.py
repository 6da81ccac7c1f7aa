"""The quarantine: its file, what Ansible and the suite's own reader make of it, and who may be left out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import inventory_loader

import splitrail
from splitrail.daytwo import quarantine
from splitrail.daytwo.fits import why_not
from splitrail.inventory.reader import load
from splitrail.project import Project

ROOT = Path(__file__).parents[3]
HOSTS = """
all:
  children:
    head: {hosts: {n1: }}
    workers: {hosts: {n2: , n3: }}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "inv"
    (made / "host_vars").mkdir(parents=True)
    (made / "host_vars/n2.yml").write_text("rail_position: 1\n")
    (made / "hosts.yml").write_text(HOSTS)
    return made


@pytest.fixture(scope="module", autouse=True)
def _plugins() -> Iterator[None]:
    inventory_loader.add_directory(str(Path(splitrail.__file__).parent / "ansible/inventory"))
    yield


def put(folder: Path, *hosts: str) -> Path:
    return quarantine.add(
        folder, {host: quarantine.Entry.now("its fan is broken", "person") for host in hosts}
    )


def seen_by_ansible(source: Path) -> dict[str, list[str]]:
    groups = InventoryManager(loader=DataLoader(), sources=[str(source)]).get_groups_dict()
    return {name: sorted(hosts) for name, hosts in groups.items()}


def test_a_host_in_quarantine_is_in_no_group_for_ansible_and_for_the_check(folder: Path) -> None:
    assert seen_by_ansible(folder)["all"] == ["n1", "n2", "n3"]
    put(folder, "n2")
    seen = seen_by_ansible(folder)
    assert (seen["all"], seen["workers"]) == (["n1", "n3"], ["n3"])
    read = load(folder)
    assert (read.members("all"), read.members("workers"), read.faults) == (["n1", "n3"], ["n3"], [])

    quarantine.release(folder, ["n2"])
    assert not (folder / quarantine.NAME).exists()
    assert seen_by_ansible(folder)["workers"] == load(folder).members("workers") == ["n2", "n3"]


def test_its_file_keeps_the_reason_and_the_evidence(folder: Path) -> None:
    told = quarantine.Evidence(
        record="20260101T000000Z", verb="fabric", task="File the verdict", message="no"
    )
    quarantine.add(folder, {"n3": quarantine.Entry.now("failed in fabric", "run", told)})
    put(folder, "n2")
    known = quarantine.load(folder / "hosts.yml")
    assert (known["n3"].evidence, known["n3"].by, known["n2"].by) == (told, "run", "person")
    assert "n3 (failed in fabric; since 20" in quarantine.line("n3", known["n3"])


def test_what_cannot_be_read_is_refused_by_everyone(folder: Path) -> None:
    path = put(folder, "n2")
    path.write_text(path.read_text().replace("reason: its fan is broken", "why: none"))
    with pytest.raises(quarantine.QuarantineError, match=r"quarantine.yml: hosts.n2.reason"):
        quarantine.load(folder)
    assert [fault for fault in load(folder).faults if "hosts.n2.reason" in str(fault)]


def test_a_source_that_would_bring_hosts_back_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "n2")
    (folder / "workers.yml").write_text("workers: {hosts: {n2: }}\n")
    monkeypatch.setattr("ansible.constants.INVENTORY_ANY_UNPARSED_IS_FAILED", True)
    with pytest.raises(AnsibleError, match=r"Completely failed to parse inventory source .*quarantine.yml"):
        seen_by_ansible(folder)


def test_every_host_stays_for_whoever_wants_to_repair_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "n2")
    monkeypatch.setenv("SPLITRAIL_QUARANTINE", "ignore")
    assert seen_by_ansible(folder)["all"] == ["n1", "n2", "n3"]


def test_what_is_not_in_it_cannot_be_released(folder: Path) -> None:
    put(folder, "n2")
    with pytest.raises(quarantine.QuarantineError, match="n3 is not in quarantine: it holds n2"):
        quarantine.release(folder, ["n3"])
    with pytest.raises(quarantine.QuarantineError, match="a list of hosts has no place"):
        quarantine.add("n1,n2", {})


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A copy of the reference inventory, four servers of eight GPUs, that serves 1P1D on two of them."""
    shutil.copytree(ROOT / "inventories", tmp_path / "inventories")
    made = tmp_path / "inventories/mi325x"
    main = made / "group_vars/all/main.yml"
    text = main.read_text()
    assert "qwen3-235b-1p3d" in text
    main.write_text(text.replace("qwen3-235b-1p3d", "qwen3-235b-1p1d"))
    return made


def test_a_cluster_does_without_what_its_topology_does_not_need(cluster: Path) -> None:
    project = Project(ROOT)
    assert why_not(project, str(cluster), ["mi325x-4", "mi325x-3"]) == []
    (reason,) = why_not(project, str(cluster), ["mi325x-4", "mi325x-3", "mi325x-2"])
    assert "pools.decode: 1 times 8 GPU is asked for and the nodes have room for 0" in reason
    (reason,) = why_not(project, str(cluster), ["mi325x-1"])
    assert "mi325x-1 is the head" in reason
    # What -e says counts, and so does who is out already.
    larger = {"topology_name": "qwen3-235b-1p3d"}
    (reason,) = why_not(project, str(cluster), ["mi325x-4"], larger)
    assert "pools.decode" in reason
    put(cluster, "mi325x-4", "mi325x-3")
    assert why_not(project, str(cluster), ["mi325x-2"]) != []


def test_what_cannot_be_told_is_no_yes(cluster: Path) -> None:
    serve = cluster / "group_vars/all/serve.yml"
    said = yaml.safe_load(serve.read_text())
    said["llm_serve_nodes"] = "{{ lookup('ansible.builtin.url', 'http://inventory') }}"
    serve.write_text(yaml.safe_dump(said))
    (reason,) = why_not(Project(ROOT), str(cluster), ["mi325x-4"])
    assert "cannot be told from the inventory" in reason


def test_the_lab_needs_each_of_its_nodes_but_for_engines_that_any_node_takes() -> None:
    lab = str(ROOT / "inventories/lab")
    (reason,) = why_not(Project(ROOT), lab, ["lab-decode"])
    assert "the group decode has no host" in reason
    assert why_not(Project(ROOT), lab, ["lab-decode"], {"topology_name": "lab-elastic-1p1d"}) == []
