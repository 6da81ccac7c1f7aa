"""What nodes are, against what an inventory declares: looked at by playbooks/discover.yml, judged here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue

from splitrail.inventory.reader import Inventory
from splitrail.inventory.resolve import Fleet, Values
from splitrail.project import Project
from splitrail.rails import RailError, parse
from splitrail.run.playbook import Interrupts, Options, Step, run_step
from splitrail.run.record import load
from splitrail.verdict import Check, Verdict

PLAYBOOK = "playbooks/discover.yml"
# What the playbook hands out with ansible.builtin.set_stats.
STATS_KEY = "splitrail_discovered"


class DiscoverError(Exception):
    """Nodes could not be looked at, or too little is known of them; the message has the cure."""


class Disk(BaseModel):
    path: str
    size_gib: float
    free_gib: float


class Gpu(BaseModel):
    pci: str
    vendor: str
    device: str
    numa: int = -1


class Interface(BaseModel):
    """``addresses`` are IPv4 with their prefix lengths."""

    name: str
    mtu: int = 0
    addresses: list[str] = []


class Nic(BaseModel):
    """A port of an RDMA NIC; more is known of it, this is what is compared."""

    pci: str
    netdev: str = ""
    rdma: str = ""
    numa: int = -1
    rate: str = ""
    gpus: list[str] = []


class Node(BaseModel):
    """One node as it is; sizes in GiB."""

    hostname: str
    machine_id: str
    os: str
    os_version: str
    kernel: str
    cpus: int
    memory_gib: float
    shm_gib: float
    disks: list[Disk] = []
    gpus: list[Gpu] = []
    gpu_gids: list[int] = []
    interfaces: list[Interface] = []
    lldp: dict[str, dict[str, str]] = {}
    nics: list[Nic] = []

    def addresses(self, interface: str = "") -> list[str]:
        """The IPv4 addresses with prefix lengths, of one interface or of all."""
        return [
            address for one in self.interfaces if interface in ("", one.name) for address in one.addresses
        ]

    @property
    def gpu_kind(self) -> str:
        """The GPUs' maker: ``amd``, ``nvidia``, or empty."""
        return {"0x1002": "amd", "0x10de": "nvidia"}.get(self.gpus[0].vendor, "") if self.gpus else ""


def look(project: Project, options: Options) -> dict[str, Node]:
    """Run the playbook; leaves no run record. Raises DiscoverError naming the hosts that could not be asked,
    CannotRun and ProjectError as the verbs do."""
    with tempfile.TemporaryDirectory(prefix="splitrail-discover-") as name:
        interrupts = Interrupts(lambda: None)
        with interrupts.caught():
            outcome = run_step(
                project,
                Step((project.playbook(PLAYBOOK),)),
                options,
                Path(name),
                on_event=lambda _event: None,
                interrupts=interrupts,
            )
        failures = load(Path(name)).failures if (Path(name) / "run.json").exists() else []
    if outcome.code or failures:
        why = [f"{failure.host}: {failure.message}" for failure in failures] or outcome.errors
        raise DiscoverError("\n".join(why) or f"ansible-playbook ended with code {outcome.code}")
    found = outcome.data.get(STATS_KEY)
    if not isinstance(found, dict):
        raise DiscoverError(f"{PLAYBOOK} handed out no {STATS_KEY}: has the inventory hosts?")
    return {host: Node.model_validate(node) for host, node in sorted(found.items())}


@dataclass
class _Judge:
    """Collects the checks of one host."""

    host: str
    checks: list[Check] = field(default_factory=list)

    def add(
        self,
        name: str,
        subject: str,
        ok: bool,
        *,
        found: JsonValue,
        wanted: JsonValue,
        hint: str,
        unit: str = "",
    ) -> None:
        """A check; see the verdict's contract."""
        self.checks.append(
            Check(
                name=f"discover.{name}",
                host=self.host,
                subject=subject,
                ok=ok,
                measured=found,
                required=wanted,
                unit=unit,
                hint=hint,
            )
        )


def compare(inventory: Inventory, nodes: Mapping[str, Node]) -> Verdict:
    """As-is against to-be. What an inventory leaves open, or only Ansible can tell, is not compared; a
    declared host that nobody looked at fails."""
    fleet = Fleet(inventory)
    checks: list[Check] = []
    for host in inventory.hosts:
        judge = _Judge(host)
        node = nodes.get(host)
        judge.add(
            "answered",
            "node",
            node is not None,
            found="looked at" if node else "no answer",
            wanted="looked at",
            hint="Reach it first.",
        )
        if node is not None:
            _host(judge, node, fleet[host])
            _gpus(judge, node, fleet[host])
            _rails(judge, node, fleet[host])
        checks += judge.checks
    checks += _cluster(inventory, nodes, fleet)
    return Verdict.of(checks)


def _host(judge: _Judge, node: Node, values: Values) -> None:
    systems = values.get("preflight_os")
    if isinstance(systems, dict):
        judge.add(
            "os",
            "os-release",
            node.os_version in (systems.get(node.os) or []),
            found=f"{node.os} {node.os_version}",
            wanted=", ".join(f"{name} {'/'.join(versions)}" for name, versions in systems.items()),
            hint="Install one of these, or add yours to preflight_os.",
        )
    for key, found in (("preflight_memory_gib", node.memory_gib), ("preflight_shm_gib", node.shm_gib)):
        wanted = values.get(key)
        if isinstance(wanted, int | float):
            hint = f"Look for missing memory, or correct {key}."
            name, ok = key.removeprefix("preflight_"), found >= wanted
            judge.add(name, key, ok, found=found, wanted=wanted, hint=hint, unit="GiB")
    free = {disk.path: disk.free_gib for disk in node.disks}
    for disk in values.get("preflight_disk") or []:
        path, wanted = disk.get("path"), disk.get("free_gib")
        if path in free and isinstance(wanted, int | float):
            hint = "Free space there, or correct preflight_disk."
            ok = free[path] >= wanted
            judge.add("disk", str(path), ok, found=free[path], wanted=wanted, hint=hint, unit="GiB")
    address = str(values.get("ansible_host") or "")
    own = [text.partition("/")[0] for text in node.addresses()]
    if own and address.replace(".", "").isdigit():
        hint = "Correct ansible_host, or leave it where the node is reached through address translation."
        ok = address in own
        judge.add("address", "ansible_host", ok, found=", ".join(own), wanted=address, hint=hint)


def _gpus(judge: _Judge, node: Node, values: Values) -> None:
    wanted = values.get("gpus_per_node")
    if isinstance(wanted, int):
        hint = "Look for the missing GPU with `lspci -D`, or correct gpus_per_node (host_vars for one host)."
        count = len(node.gpus)
        judge.add("gpus", "GPUs", count == wanted, found=count, wanted=wanted, hint=hint)
    gids = values.get("gpu_device_gids")
    if isinstance(gids, list) and node.gpu_gids:
        hint = "Correct gpu_device_gids: containers join these groups to open the GPUs."
        told = [", ".join(map(str, sorted(of))) for of in (node.gpu_gids, gids)]
        ok = told[0] == told[1]
        judge.add("gpu_groups", "/dev/kfd, /dev/dri", ok, found=told[0], wanted=told[1], hint=hint)


def _rails(judge: _Judge, node: Node, values: Values) -> None:
    try:
        rails = parse(values.get("roce_nic_rails") or [])
    except RailError:
        return  # the check of the inventory names it
    if not rails:
        return
    nics = {nic.pci: nic for nic in node.nics}
    ignored = values.get("roce_nic_ignored") or []
    for rail in rails:
        nic = nics.get(rail["pci"])
        if not rail["pci"]:
            continue
        subject = f"rail {rail['rail']} {rail['pci']}"
        hint = "Look for the card with `lspci -D`, or correct its pci in the inventory."
        told = "RDMA NIC" if nic else "no RDMA NIC"
        judge.add("nic", subject, nic is not None, found=told, wanted="RDMA NIC", hint=hint)
        if nic is not None:
            own = node.addresses(nic.netdev)
            hint = "Run playbooks/fabric.yml, or correct the inventory where the NIC is right."
            ok, told = rail["address"] in own, ", ".join(own) or "none"
            judge.add("rail", subject, ok, found=told, wanted=rail["address"], hint=hint)
    declared = {rail["pci"] for rail in rails if rail["pci"]}
    if declared:
        extra = sorted(set(nics) - declared - set(ignored))
        hint = "Declare them as rails, or list them in roce_nic_ignored."
        told = ", ".join(extra) or "none"
        judge.add("undeclared", "RDMA NICs", not extra, found=told, wanted="none", hint=hint)
    else:
        usable = sorted(set(nics) - set(ignored))
        hint = "Declare as many rails as the node has RDMA NICs, or list the others in roce_nic_ignored."
        ok = len(usable) == len(rails)
        judge.add("nics", "RDMA NICs", ok, found=len(usable), wanted=len(rails), hint=hint)


def _cluster(inventory: Inventory, nodes: Mapping[str, Node], fleet: Fleet) -> Iterator[Check]:
    """What only all nodes together tell: clones, and the switch of each rail where LLDP names it."""
    for host, node in nodes.items():
        twins = [
            name for name, other in nodes.items() if name != host and other.machine_id == node.machine_id
        ]
        judge = _Judge(host)
        hint = "Empty /etc/machine-id, run `systemd-machine-id-setup` and reboot."
        told = f"that of {', '.join(twins)}" if twins else "its own"
        judge.add("machine_id", "/etc/machine-id", not twins, found=told, wanted="its own", hint=hint)
        yield from judge.checks
    switches: dict[int, dict[str, str]] = {}
    for host in inventory.hosts:
        seen = nodes.get(host)
        for number, switch in _switches(seen, fleet[host]) if seen else ():
            switches.setdefault(number, {})[host] = switch
    for number, of in sorted(switches.items()):
        usual = max(of.values(), key=list(of.values()).count)
        for host, switch in of.items():
            judge = _Judge(host)
            hint = "Move the cable, or correct which NIC is which rail: each rail has one leaf."
            judge.add("switch", f"rail {number}", switch == usual, found=switch, wanted=usual, hint=hint)
            yield from judge.checks


def _switches(node: Node, values: Values) -> Iterator[tuple[int, str]]:
    nics = {nic.pci: nic.netdev for nic in node.nics}
    try:
        rails = parse(values.get("roce_nic_rails") or [])
    except RailError:
        return
    for rail in rails:
        neighbour = node.lldp.get(nics.get(rail["pci"], ""), {})
        if neighbour.get("switch"):
            yield rail["rail"], neighbour["switch"]


def rails_of(node: Node) -> tuple[list[dict[str, Any]], list[str]]:
    """The rails that a node's RDMA NICs make, rail N beside GPU N (or by PCI where there is no GPU), and what
    is not known of them. Nothing is guessed: NICs that cannot be told apart give no rails."""
    owners = [min(nic.gpus) if nic.gpus else "" for nic in node.nics]
    if any(owners) and (len(set(owners)) < len(owners) or any(len(nic.gpus) > 1 for nic in node.nics)):
        return [], [
            f"{node.hostname}: which RDMA NIC is beside which GPU is ambiguous; write pci of every rail"
        ]
    order = sorted(zip(owners, node.nics, strict=True), key=lambda pair: (pair[0], pair[1].pci))
    rails, open_ = [], []
    for number, (_, nic) in enumerate(order):
        rail: dict[str, Any] = {"rail": number, "pci": nic.pci}
        addresses = node.addresses(nic.netdev)
        if len(addresses) == 1:
            rail["address"] = addresses[0]
            rail |= _gateway(addresses[0])
        else:
            found = ", ".join(addresses) or "none"
            open_.append(f"{node.hostname}: address of rail {number} ({nic.pci}, {nic.netdev}): has {found}")
        rails.append(rail)
    return rails, open_


def _gateway(address: str) -> dict[str, str]:
    """On a link of two addresses the other one is the switch's."""
    own = IPv4Interface(address)
    if own.network.prefixlen != 31:  # noqa: PLR2004  # RFC 3021
        return {}
    return {"gateway": str(next(one for one in own.network if one != own.ip))}
