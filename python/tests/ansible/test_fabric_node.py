"""Every check of splitrail_fabric_node, passing and failing, on a node made of files."""

from __future__ import annotations

import resource
import struct
from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.modules import splitrail_fabric_node as fabric_node
from splitrail.ansible.modules.splitrail_fabric_node import Node, look
from splitrail.rails import parse

RAILS = parse(
    [
        {"rail": 0, "pci": "0000:0c:00.0", "address": "10.30.0.0/31", "gateway": "10.30.0.1"},
        {"rail": 1, "pci": "0000:2a:00.0", "address": "10.30.1.0/31", "gateway": "10.30.1.1"},
    ]
)
UNLIMITED = resource.RLIM_INFINITY
WANTED: dict[str, Any] = {"rails": RAILS, "mtu": 4096, "rate_gbps": 400.0, "memlock_mib": -1, "gpu": "none"}
LINK_LOCAL = "fe80:0000:0000:0000:0200:00ff:fe00:0001"


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return path


def gid(ip: str) -> str:
    one, two, three, four = (int(part) for part in ip.split("."))
    return f"0000:0000:0000:0000:0000:ffff:{one:02x}{two:02x}:{three:02x}{four:02x}"


def pci_space(*capabilities: tuple[int, int]) -> bytes:
    """A configuration space with extended capabilities: (identifier, control register)."""
    space = bytearray(4096)
    for place, (name, control) in enumerate(capabilities):
        here = 0x100 + 0x20 * place
        after = here + 0x20 if place + 1 < len(capabilities) else 0
        struct.pack_into("<IHH", space, here, name | 1 << 16 | after << 20, 0, control)
    return bytes(space)


class Box:
    """A server with two mlx5 ports, as sysfs shows it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        put(root / "proc/sys/kernel/random/boot_id", "b00t")
        put(root / "proc/sys/kernel/osrelease", "6.8.0-60-generic")
        for rail, slot in ((0, "0000:0c:00.0"), (1, "0000:2a:00.0")):
            self.card(rail, slot)
        bridge = root / "sys/bus/pci/devices/0000:00:01.0"
        bridge.mkdir(parents=True)
        (bridge / "config").write_bytes(pci_space((0x0001, 0), (0x000D, 0)))

    def card(self, rail: int, slot: str) -> None:
        bus = self.root / f"sys/devices/pci0000:00/0000:00:0{rail + 1}.1/{slot}"
        net, device = self.root / f"sys/class/net/rail{rail}", self.device(rail)
        for name, text in {
            **{"current_link_width": "16", "max_link_width": "16"},
            **{"current_link_speed": "32.0 GT/s PCIe", "max_link_speed": "32.0 GT/s PCIe"},
        }.items():
            put(bus / name, text)
        for folder in (net, device):
            folder.mkdir(parents=True)
            (folder / "device").symlink_to(bus)
        (self.root / "sys/bus/pci/devices").mkdir(parents=True, exist_ok=True)
        (self.root / "sys/bus/pci/devices" / slot).symlink_to(bus)
        put(net / "carrier", "1")
        put(net / "mtu", "9000")
        put(device / "fw_ver", "28.43.1014")
        put(device / "board_id", "MT_0000000838")
        port = device / "ports/1"
        put(port / "state", "4: ACTIVE")
        put(port / "rate", "400 Gb/sec (4X NDR)")
        ip = RAILS[rail]["ip"]
        entries = [
            ("IB/RoCE v1", LINK_LOCAL),
            ("RoCE v2", LINK_LOCAL),
            ("IB/RoCE v1", gid(ip)),
            ("RoCE v2", gid(ip)),
        ]
        for number, (kind, value) in enumerate(entries):
            put(port / f"gid_attrs/types/{number}", kind)
            put(port / f"gid_attrs/ndevs/{number}", f"rail{rail}")
            put(port / f"gids/{number}", value)

    def device(self, rail: int) -> Path:
        return self.root / f"sys/class/infiniband/mlx5_{rail}"

    def soften(self, rail: int) -> None:
        """Make a card's device a soft-RoCE one."""
        (self.device(rail) / "device").unlink()
        put(self.device(rail) / "parent", f"rail{rail}")

    def gpus(self, *slots: str) -> None:
        for number, slot in enumerate(["", *slots]):
            node = self.root / f"sys/class/kfd/kfd/topology/nodes/{number}"
            if not slot:
                put(node / "properties", "cpu_cores_count 64\nsimd_count 0")
                continue
            bus = int(slot.split(":")[1], 16)
            put(node / "properties", f"simd_count 1216\nlocation_id {bus << 8}\ndomain 0")
            parent = "0000:00:01.1" if bus < 0x20 else "0000:00:02.1"
            place = self.root / f"sys/devices/pci0000:00/{parent}/{slot}"
            place.mkdir(parents=True)
            (self.root / "sys/bus/pci/devices" / slot).symlink_to(place)

    def look(self, memlock: int = UNLIMITED, **more: Any) -> dict[str, Any]:
        return look(Node(self.root), {**WANTED, **more}, memlock)

    def failed(self, memlock: int = UNLIMITED, **more: Any) -> dict[str, Any]:
        return {c["name"]: c["measured"] for c in self.look(memlock, **more)["checks"] if not c["ok"]}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_a_server_as_declared_passes_every_check(box: Box) -> None:
    found = box.look()
    assert box.failed() == {}
    assert [c["name"].removeprefix("fabric.") for c in found["checks"]] == [
        *(2 * ["device", "link", "mtu", "gid", "rate", "width"]),
        *("acs", "memlock"),
    ]
    assert all(c["hint"] for c in found["checks"])
    assert found["boot_id"] == "b00t"
    assert found["ports"][0] == {
        **{"rail": 0, "name": "rail0", "device": "mlx5_0", "gid_index": 3, "ip": "10.30.0.0"},
        **{"gateway": "10.30.0.1", "rate_gbps": 400.0, "soft": False, "gpu": None, "dmabuf": False},
        **{"firmware": "28.43.1014", "board": "MT_0000000838", "faults": [], "doubts": []},
    }


def test_the_gid_is_found_wherever_it_is(box: Box) -> None:
    for folder in ("gid_attrs/types", "gid_attrs/ndevs", "gids"):
        entries = box.device(0) / "ports/1" / folder
        (entries / "3").rename(entries / "11")
    assert box.failed() == {}
    assert box.look()["ports"][0]["gid_index"] == 11


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("gids", gid("10.30.0.6")),
        ("gids", LINK_LOCAL),
        ("gid_attrs/types", "IB/RoCE v1"),
        ("gid_attrs/ndevs", "eth7"),
    ],
)
def test_another_gid_will_not_do(box: Box, folder: str, text: str) -> None:
    put(box.device(0) / "ports/1" / folder / "3", text)
    found = box.failed()
    assert list(found) == ["fabric.gid"]
    assert found["fabric.gid"].startswith("not among 0: IB/RoCE v1 fe80")
    assert box.look()["ports"][0]["faults"] == ["fabric.gid"]
    assert box.look()["ports"][1]["faults"] == []


def test_no_device(box: Box) -> None:
    for entry in (box.device(1) / "ports/1/gid_attrs/ndevs").iterdir():
        entry.unlink()
    (box.device(1) / "device").unlink()
    assert box.failed() == {"fabric.device": "no RDMA device"}
    assert box.look()["ports"][1]["faults"] == ["fabric.device"]


@pytest.mark.parametrize(
    ("file", "text", "measured"),
    [
        ("sys/class/net/rail0/carrier", "0", "no carrier"),
        ("sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN", "RDMA port 1: DOWN"),
    ],
)
def test_link_down(box: Box, file: str, text: str, measured: str) -> None:
    put(box.root / file, text)
    assert box.failed() == {"fabric.link": measured}
    assert box.look()["ports"][0]["faults"] == ["fabric.link"]


@pytest.mark.parametrize(
    ("mtu", "rdma"), [(1500, 1024), (2048, 1024), (4191, 2048), (4192, 4096), (9000, 4096)]
)
def test_the_rdma_mtu_is_what_the_kernel_makes_of_the_interfaces(box: Box, mtu: int, rdma: int) -> None:
    put(box.root / "sys/class/net/rail0/mtu", str(mtu))
    assert box.failed() == ({} if rdma == 4096 else {"fabric.mtu": rdma})


def test_slow_link_and_narrow_slot(box: Box) -> None:
    put(box.device(0) / "ports/1/rate", "200 Gb/sec (4X HDR)")
    put(box.root / "sys/devices/pci0000:00/0000:00:02.1/0000:2a:00.0/current_link_width", "8")
    assert box.failed() == {"fabric.rate": 200.0, "fabric.width": "x8 at 32.0 GT/s PCIe"}
    assert "fabric.rate" not in box.failed(rate_gbps=0.0)


def test_width_that_is_not_shown_is_no_pass(box: Box) -> None:
    (box.root / "sys/devices/pci0000:00/0000:00:01.1/0000:0c:00.0/max_link_width").unlink()
    assert box.failed()["fabric.width"].startswith("could not be checked")


def test_a_soft_device_has_neither_rate_nor_slot(box: Box) -> None:
    box.soften(0)
    names = [c["name"] for c in box.look()["checks"] if "rail0" in c["subject"]]
    assert names == [f"fabric.{name}" for name in ("device", "link", "mtu", "gid")]
    assert box.look()["ports"][0]["soft"] is True


def test_a_soft_device_without_any_gid_is_still_known(box: Box) -> None:
    box.soften(0)
    for entry in (box.device(0) / "ports/1/gid_attrs/ndevs").iterdir():
        entry.unlink()
    found = box.failed()
    assert found == {"fabric.gid": "not among none"}


def test_acs(box: Box) -> None:
    config = box.root / "sys/bus/pci/devices/0000:00:01.0/config"
    config.write_bytes(pci_space((0x0001, 0), (0x000D, 0x1D)))
    assert box.failed() == {"fabric.acs": "SrcValid+ on 0000:00:01.0"}
    config.write_bytes(pci_space((0x000D, 0x1D))[:64])  # what others than root may read
    assert box.failed() == {}
    config.unlink()
    assert box.failed()["fabric.acs"].startswith("could not be checked")


def test_a_looping_capability_list_ends() -> None:
    space = bytearray(pci_space((0x0001, 0)))
    struct.pack_into("<I", space, 0x100, 0x0001 | 1 << 16 | 0x100 << 20)
    assert fabric_node.acs_control(bytes(space)) == 0


@pytest.mark.parametrize(
    ("limit", "required", "ok"),
    [
        (UNLIMITED, -1, True),
        (8 << 20, -1, False),
        (8 << 20, 64, False),
        (64 << 20, 64, True),
        (UNLIMITED, 64, True),
    ],
)
def test_memlock(box: Box, limit: int, required: int, ok: bool) -> None:
    assert ("fabric.memlock" not in box.failed(limit, memlock_mib=required)) is ok


def test_gpu_memory(box: Box) -> None:
    box.gpus("0000:0d:00.0", "0000:2b:00.0")
    assert box.failed(gpu="rocm") == {"fabric.gpu_memory": "neither peer memory nor dmabuf"}
    config = put(
        box.root / "boot/config-6.8.0-60-generic",
        "CONFIG_PCI_P2PDMA=y\n# CONFIG_DMABUF_MOVE_NOTIFY is not set",
    )
    assert "fabric.gpu_memory" in box.failed(gpu="rocm")
    put(config, "CONFIG_PCI_P2PDMA=y\nCONFIG_DMABUF_MOVE_NOTIFY=y")
    assert box.failed(gpu="rocm") == {}
    assert [(port["gpu"], port["dmabuf"]) for port in box.look(gpu="rocm")["ports"]] == [(0, True), (1, True)]
    put(box.root / "sys/kernel/mm/memory_peers/amdkfd/version", "1.0")
    assert [(port["gpu"], port["dmabuf"]) for port in box.look(gpu="rocm")["ports"]] == [
        (0, False),
        (1, False),
    ]


def test_a_gpu_that_is_not_nearest_is_not_taken(box: Box) -> None:
    put(box.root / "proc/kallsyms", "0000 T ib_register_peer_memory_client\t[ib_core]")
    box.gpus("0000:0d:00.0", "0000:0e:00.0")
    assert box.failed(gpu="rocm") == {"fabric.gpu": "none nearest of 2"}
    assert [port["gpu"] for port in box.look(gpu="rocm")["ports"]] == [None, None]
