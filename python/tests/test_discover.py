"""What nodes are, against what is declared; inventories written from it. Nodes are recorded ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from splitrail import discover_cli
from splitrail.ansible.modules import splitrail_node_facts as facts
from splitrail.cli import app
from splitrail.discover import DiscoverError, Node, compare, rails_of
from splitrail.discover_write import Roles, write
from splitrail.inventory.check import check
from splitrail.inventory.reader import load
from splitrail.lab.standins.sysfs import build
from splitrail.project import Project
from splitrail.verdict import Verdict

ROOT = Path(__file__).parents[2]
# PCI of the NICs of the reference cluster; the GPU beside each has the next number.
BUSES = ["0c", "2a", "41", "58", "86", "a5", "bd", "d5"]


def node(position: int, **changed: Any) -> Node:
    """A server of inventories/mi325x as it should be, at this position of the rails."""
    rails = range(8)
    return Node.model_validate(
        {
            "hostname": f"mi325x-{position + 1}",
            "machine_id": f"{position:032x}",
            "os": "ubuntu",
            "os_version": "24.04",
            "kernel": "6.8.0-60-generic",
            "cpus": 256,
            "memory_gib": 2267.0,
            "shm_gib": 1133.0,
            "disks": [
                {"path": "/var/lib", "size_gib": 7000, "free_gib": 5000},
                {"path": "/tmp", "size_gib": 7000, "free_gib": 5000},
            ],
            "gpus": [
                {"pci": f"0000:{int(bus, 16) + 1:02x}:00.0", "vendor": "0x1002", "device": "0x74a5"}
                for bus in BUSES
            ],
            "gpu_gids": [44, 991],
            "interfaces": [
                {"name": "eno1", "mtu": 1500, "addresses": [f"10.10.0.{11 + position}/24"]},
                *(
                    {"name": f"rail{n}", "mtu": 9000, "addresses": [f"10.30.{n}.{2 * position}/31"]}
                    for n in rails
                ),
            ],
            "lldp": {f"rail{n}": {"switch": f"leaf-{n}", "port": f"Ethernet{position}"} for n in rails},
            "nics": [
                {
                    "pci": f"0000:{bus}:00.0",
                    "netdev": f"rail{n}",
                    "rdma": f"mlx5_{n}",
                    "gpus": [f"0000:{int(bus, 16) + 1:02x}:00.0"],
                }
                for n, bus in enumerate(BUSES)
            ],
            **changed,
        }
    )


def verdict(**changed: Any) -> Verdict:
    """The reference cluster with its second server changed."""
    nodes = {f"mi325x-{n + 1}": node(n, **(changed if n == 1 else {})) for n in range(4)}
    return compare(load(ROOT / "inventories/mi325x"), nodes)


def failed(of: Verdict) -> set[tuple[str, str]]:
    assert all(one.host == "mi325x-2" for one in of.failed if one.name != "discover.machine_id")
    return {(one.name.removeprefix("discover."), one.subject) for one in of.failed}


def test_a_cluster_as_declared_differs_in_nothing() -> None:
    found = verdict()
    assert found.ok, found.failed
    assert {one.name.removeprefix("discover.") for one in found.checks} == {
        *("answered", "os", "memory_gib", "shm_gib", "disk", "address", "gpus", "gpu_groups", "nic", "rail"),
        *("undeclared", "machine_id", "switch"),
    }


def changed_nics(**of_first: Any) -> list[dict[str, Any]]:
    nics = [nic.model_dump() for nic in node(1).nics]
    return [{**nics[0], **of_first}, *nics[1:]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"os_version": "20.04"}, {("os", "os-release")}),
        ({"memory_gib": 900}, {("memory_gib", "preflight_memory_gib")}),
        ({"shm_gib": 1}, {("shm_gib", "preflight_shm_gib")}),
        ({"disks": [{"path": "/tmp", "size_gib": 9, "free_gib": 1}]}, {("disk", "/tmp")}),
        ({"gpus": []}, {("gpus", "GPUs")}),
        ({"gpu_gids": [44, 109]}, {("gpu_groups", "/dev/kfd, /dev/dri")}),
        (
            {"nics": changed_nics(pci="0000:0d:00.0")},
            {("nic", "rail 0 0000:0c:00.0"), ("undeclared", "RDMA NICs")},
        ),
        (
            {"interfaces": [{"name": "eno1", "addresses": ["10.10.0.12/24"]}]},
            {("rail", f"rail {n} 0000:{bus}:00.0") for n, bus in enumerate(BUSES)},
        ),
        ({"lldp": {"rail3": {"switch": "leaf-4", "port": "Ethernet1"}}}, {("switch", "rail 3")}),
        ({"machine_id": f"{0:032x}"}, {("machine_id", "/etc/machine-id")}),
    ],
)
def test_each_difference_is_named(change: dict[str, Any], named: set[tuple[str, str]]) -> None:
    found = verdict(**change)
    assert failed(found) == named
    assert all(one.hint for one in found.failed)


def test_an_address_that_is_not_the_nodes_own_and_a_host_that_did_not_answer() -> None:
    interfaces = [one.model_dump() for one in node(1).interfaces]
    interfaces[0]["addresses"] = ["10.10.0.99/24"]
    nodes = {f"mi325x-{n + 1}": node(n) for n in range(3)}
    nodes["mi325x-2"] = node(1, interfaces=interfaces)
    found = compare(load(ROOT / "inventories/mi325x"), nodes)
    assert {(one.host, one.name) for one in found.failed} == {
        ("mi325x-2", "discover.address"),
        ("mi325x-4", "discover.answered"),
    }


# Writing.


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """The project in a folder of the test: its own inventories, everything else linked."""
    shutil.copytree(ROOT / "inventories", tmp_path / "inventories")
    for name in ("roles", "playbooks", "templates", "site.yml", "ansible.cfg"):
        (tmp_path / name).symlink_to(ROOT / name)
    yield Project(tmp_path)


NODES = {f"gpu-{n}": node(n) for n in range(4)}
CONNECTION = {f"gpu-{n}": {"ansible_host": f"10.10.0.{11 + n}", "ansible_user": "ops"} for n in range(4)}
ROLES = Roles("gpu-0", ("gpu-0", "gpu-1"), ("gpu-2", "gpu-3"))


def test_a_written_inventory_passes_the_check_and_says_what_is_there(project: Project) -> None:
    out = project.root / "inventories/mine"
    left = write(project, out, NODES, CONNECTION, roles=ROLES, like=None)
    assert left == [
        "topology_name: qwen3-235b-2p2d follows from the pools; see that it is the model you mean"
    ]
    inventory = check(project, str(out))
    assert inventory.members("prefill") == ["gpu-0", "gpu-1"]
    assert inventory.members("head") == ["gpu-0"]
    of = {key: one.value for key, one in inventory.of("gpu-3").items()}
    assert of["cluster_name"] == "mine"
    assert (of["gpus_per_node"], of["gpu_device_gids"]) == (8, [44, 991])
    assert of["topology_name"] == "qwen3-235b-2p2d"
    assert of["ansible_user"] == "ops"
    assert of["roce_nic_rails"][7] == {
        "rail": 7,
        "pci": "0000:d5:00.0",
        "address": "10.30.7.6/31",
        "gateway": "10.30.7.7",
    }
    again = compare(inventory, NODES)
    assert again.ok, again.failed


def test_what_the_nics_do_not_tell_is_left_to_decide(project: Project) -> None:
    bare = {host: one.model_copy(update={"interfaces": []}) for host, one in NODES.items()}
    left = write(project, project.root / "inventories/mine", bare, CONNECTION, roles=ROLES, like=None)
    assert sum("address of rail" in line for line in left) == 32
    assert any(line.startswith("roce_nic_rails of gpu-0: not written") for line in left)


def test_one_host_is_everything(project: Project) -> None:
    nvidia = [{"pci": f"0000:{n}a:00.0", "vendor": "0x10de", "device": "0x2335"} for n in range(8)]
    one = node(0, gpus=nvidia, nics=[], gpu_gids=[])
    write(
        project,
        project.root / "inventories/mine",
        {"h": one},
        {"h": {"ansible_host": "10.0.0.1"}},
        roles=Roles.of(["h"], None, None, None),
        like=None,
    )
    of = check(project, str(project.root / "inventories/mine")).of("h")
    assert of["gpus_per_node"].value == 8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((None, None, None), "which is the head"),
        (("gpu-0", "gpu-0", None), "say --head HOST --prefill HOSTS --decode HOSTS"),
        (("gpu-9", "gpu-0", "gpu-1"), "gpu-9: not among the hosts"),
        (("gpu-0", "gpu-0", "gpu-1"), "in neither: gpu-2, gpu-3"),
        (("gpu-0", "gpu-0,gpu-1", "gpu-1,gpu-2,gpu-3"), "in both: gpu-1"),
        (("gpu-0", "", "gpu-1,gpu-2,gpu-3"), "each with one at least"),
    ],
)
def test_who_is_what_is_asked_for(given: tuple[str | None, str | None, str | None], said: str) -> None:
    with pytest.raises(DiscoverError, match=said):
        Roles.of(list(NODES), *given)


def test_what_cannot_be_written_is_refused(project: Project) -> None:
    out = project.root / "inventories/mine"
    cases: list[tuple[Path, dict[str, Node], str | None, str]] = [
        (project.root / "elsewhere", NODES, None, "name a folder in inventories/"),
        (project.root / "inventories/lab", NODES, None, "is there already"),
        (out, {h: n.model_copy(update={"gpus": []}) for h, n in NODES.items()}, None, "say --like"),
        (out, NODES, "mi999", "no such inventory"),
        (out, NODES | {"gpu-3": node(3, gpus=[])}, "mi325x", "differ in their GPUs"),
        (out, NODES | {"gpu-3": node(2)}, None, "passes the check"),  # two servers with one address on a rail
    ]
    for where, nodes, like, said in cases:
        with pytest.raises(DiscoverError, match=said):
            write(project, where, nodes, CONNECTION, roles=ROLES, like=like)
        assert not out.exists()


def test_nics_that_cannot_be_told_apart_give_no_rails() -> None:
    nics = changed_nics(gpus=["0000:0d:00.0", "0000:2b:00.0"])
    rails, left = rails_of(node(0, nics=nics))
    assert rails == []
    assert "ambiguous" in left[0]


# The module.


def test_what_the_system_says() -> None:
    assert facts.os_release('ID=debian\nVERSION_ID="12"\n# no\n') == {"ID": "debian", "VERSION_ID": "12"}
    assert facts.meminfo_gib("MemTotal:       25165824 kB\nMemFree: 1 kB\n") == 24.0
    assert facts.meminfo_gib("") == 0.0
    assert facts.disks(["/", "/no/such/path"])[1]["size_gib"] > 0
    found = facts.look(Path("/"), Path("/sys"), ["/"])
    assert found["hostname"] == os.uname().nodename.partition(".")[0]
    Node.model_validate(found)


def test_gpus_and_their_groups(tmp_path: Path) -> None:
    devices = [
        {"path": "pci0000:00/0000:00:01.1/0000:0c:00.0", "netdev": "e0", "rdma": "mlx5_0", "numa": 1},
        {"path": "pci0000:00/0000:00:01.2/0000:0d:00.0", "gpu": True, "numa": 1},
    ]
    build(tmp_path / "sys", devices)
    assert facts.gpus(tmp_path / "sys") == [
        {"pci": "0000:0d:00.0", "vendor": "0x1002", "device": "0x74a5", "numa": 1}
    ]
    (tmp_path / "dev/dri").mkdir(parents=True)
    (tmp_path / "dev/kfd").touch()
    group = (tmp_path / "dev/kfd").stat().st_gid
    assert facts.gpu_gids(tmp_path) == ([group] if group else [])


def test_addresses_of_interfaces() -> None:
    output = json.dumps(
        [
            {"ifname": "lo", "flags": ["LOOPBACK"], "mtu": 65536},
            {
                "ifname": "rail0",
                "flags": ["UP"],
                "mtu": 9000,
                "addr_info": [
                    {"family": "inet", "local": "10.30.0.0", "prefixlen": 31},
                    {"family": "inet6", "local": "fe80::1", "prefixlen": 64},
                ],
            },
        ]
    )
    assert facts.interfaces(output) == [{"name": "rail0", "mtu": 9000, "addresses": ["10.30.0.0/31"]}]
    assert facts.parsed(facts.interfaces, "garbage", []) == []


ONE = {
    "rail0": {
        "via": "LLDP",
        "chassis": {"leaf-0": {"id": {"type": "mac", "value": "00:11:22:33:44:55"}}},
        "port": {"id": {"type": "ifname", "value": "Ethernet1"}, "descr": "to gpu-0"},
    }
}


@pytest.mark.parametrize("interface", [ONE, [ONE]], ids=["a mapping for one", "a list"])
def test_neighbours(interface: Any) -> None:
    output = json.dumps({"lldp": {"interface": interface}})
    assert facts.lldp(output) == {"rail0": {"switch": "leaf-0", "port": "Ethernet1"}}


def test_a_switch_without_a_name_is_known_by_its_address() -> None:
    chassis = {"id": {"type": "mac", "value": "00:11:22:33:44:55"}}
    output = json.dumps({"lldp": {"interface": {"e0": {"chassis": chassis, "port": {"descr": "swp1"}}}}})
    assert facts.lldp(output) == {"e0": {"switch": "00:11:22:33:44:55", "port": "swp1"}}
    assert facts.lldp("{}") == {}
    assert facts.parsed(facts.lldp, "[]", {}) == {}


# The command.


def test_the_command_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    nodes = {f"mi325x-{n + 1}": node(n) for n in range(4)}
    monkeypatch.setattr(discover_cli, "look", lambda *_: nodes)
    words = ["discover", "-i", "inventories/mi325x", "--json"]
    assert CliRunner().invoke(app, words).exit_code == 0
    nodes["mi325x-2"] = node(1, gpus=[])
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["verdict"]["ok"] is False


def test_the_command_writes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    asked: list[Any] = []

    def look(_: Project, options: Any) -> dict[str, Node]:
        asked.append(yaml.safe_load((Path(options.inventory) / "hosts.yml").read_text()))
        return {f"10.10.0.{11 + n}": node(n) for n in range(4)}

    monkeypatch.setattr(discover_cli, "look", look)
    words = ["discover", *(f"10.10.0.{11 + n}" for n in range(4)), "--user", "ops"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert "nothing written" in done.output
    assert asked[0]["all"]["hosts"]["10.10.0.12"] == {"ansible_host": "10.10.0.12", "ansible_user": "ops"}
    words += ["--out", "inventories/mine", "--json"]
    assert "which is the head" in json.loads(CliRunner().invoke(app, words).stdout)["error"]
    words += ["--head", "mi325x-1", "--prefill", "mi325x-1", "--decode", "mi325x-2,mi325x-3,mi325x-4"]
    done = CliRunner().invoke(app, words)
    assert json.loads(done.stdout)["written"] == "inventories/mine"
    assert check(project, str(project.root / "inventories/mine")).members("decode")[0] == "mi325x-2"
    assert CliRunner().invoke(app, ["discover"]).exit_code == 2
    assert CliRunner().invoke(app, ["discover", "h", "-i", "inventories/lab"]).exit_code == 2
