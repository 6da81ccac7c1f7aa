"""What an inventory declares about its lab, read through `ansible-inventory` and checked first.

Keys, each one a variable that has the same value on every host:

    lab_name          names the lab's bridge, nft table and folders: up to 12 of a-z, 0-9 and -
    lab_kind          `container` (systemd-nspawn) or `vm` (QEMU)
    lab_network       IPv4 network of the lab; its first address is this host's
    lab_boot_seconds  how long a node may take until systemd says that it is up, in seconds
    lab_mounts        folders of this host that nodes see: `source` (relative to the cache, or absolute),
                      `target`, `groups` (whose hosts have it; default all), `writable_on` (groups whose hosts
                      may write; containers only: a VM sees the folder as it was when the VM was powered on)

of containers only:

    lab_shm_gib       size of each node's /dev/shm in GiB

and of VMs only:

    lab_memory_mib    memory of each node in MiB
    lab_cpus          processors of each node
    lab_rails         NICs of each node beside its management NIC, each on a switch of its own: 0 to 8

A host's address is its `ansible_host`; the key made for it is `ansible_ssh_private_key_file`, and
`known_hosts` lies beside that.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Literal

import jinja2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from splitrail.lab.invoker import run_as_invoker
from splitrail.lab.run import LabError

_CURES = {
    "lab_name": "up to 12 of a-z, 0-9 and -, first a letter, such as `lab`",
    "lab_kind": "set it to `container` or `vm`",
    "lab_network": "a private IPv4 network that nothing here uses, such as 10.87.0.0/24",
    "lab_shm_gib": "a size in GiB above 0, such as 4",
    "lab_boot_seconds": "a time in seconds above 0, such as 120",
    "lab_mounts": "a list of {source, target, groups, writable_on}",
    "lab_memory_mib": "a size in MiB from 512 on, such as 1536",
    "lab_cpus": "a number of processors from 1 to 64, such as 1",
    "lab_rails": "a number of rails from 0 to 8, such as 2",
    "ansible_host": "an IPv4 address inside lab_network",
    "ansible_user": "a Linux user's name, such as `splitrail`",
    "ansible_ssh_private_key_file": "a path for the key that the lab makes",
}
# Keys that say something of one kind of node only.
_ONLY = {
    "container": ("shm_gib",),
    "vm": ("memory_mib", "cpus", "rails"),
}
# `sr-NAME.r7` has to fit into the 15 characters of an interface's name.
_VM_NAME = 9
# Each is a disk, and a disk is a slot of the PCI bus.
_VM_MOUNTS = 8


class Mount(BaseModel):
    """A folder of this host that nodes see."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Path
    target: Path
    groups: tuple[str, ...] | None = None
    writable_on: tuple[str, ...] = ()

    @field_validator("target")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError("target must be an absolute path")
        return value


class Node(BaseModel):
    """One host of the inventory."""

    model_config = ConfigDict(frozen=True)

    # Also the machine's host name, hence no underscore.
    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$")
    address: IPv4Address
    groups: tuple[str, ...] = ()

    def is_in(self, groups: Iterable[str]) -> bool:
        """Whether the host is in one of the groups."""
        return any(group == "all" or group in self.groups for group in groups)

    def sees(self, mount: Mount) -> bool:
        """Whether the host has the mount."""
        return mount.groups is None or self.is_in(mount.groups)


class Lab(BaseModel):
    """A whole lab."""

    model_config = ConfigDict(frozen=True)

    inventory: Path
    name: str = Field(alias="lab_name", pattern=r"^[a-z][a-z0-9-]{0,11}$")
    kind: Literal["container", "vm"] = Field(alias="lab_kind", default="container")
    network: IPv4Network = Field(alias="lab_network")
    shm_gib: float = Field(alias="lab_shm_gib", default=4, gt=0)
    boot_seconds: float = Field(alias="lab_boot_seconds", default=120, gt=0)
    mounts: tuple[Mount, ...] = Field(alias="lab_mounts", default=())
    memory_mib: int = Field(alias="lab_memory_mib", default=1536, ge=512)
    cpus: int = Field(alias="lab_cpus", default=1, ge=1, le=64)
    rails: int = Field(alias="lab_rails", default=0, ge=0, le=8)
    user: str = Field(alias="ansible_user", pattern=r"^[a-z_][a-z0-9_-]{0,31}$")
    key: Path = Field(alias="ansible_ssh_private_key_file")
    nodes: tuple[Node, ...]

    @field_validator("network")
    @classmethod
    def _private(cls, value: IPv4Network) -> IPv4Network:
        if not value.is_private or value.is_loopback or value.prefixlen > 29:  # noqa: PLR2004
            raise ValueError(f"{value} is not a private network with room for nodes (/29 or larger)")
        return value

    @model_validator(mode="after")
    def _of_its_kind(self) -> Lab:
        for kind, fields in _ONLY.items():
            for field in fields:
                if kind != self.kind and field in self.model_fields_set:
                    raise ValueError(
                        f"lab_{field} is for lab_kind `{kind}` only, and this one is `{self.kind}`; remove it"
                    )
        for mount in self.mounts if self.kind == "vm" else ():
            if mount.writable_on:
                raise ValueError(
                    f"lab_mounts {mount.target}: VMs only read what they see; remove writable_on"
                )
        if self.kind == "vm" and len(self.mounts) > _VM_MOUNTS:
            raise ValueError(f"lab_mounts: a VM has up to {_VM_MOUNTS} of them (got {len(self.mounts)})")
        if self.kind == "vm" and len(self.name) > _VM_NAME:
            raise ValueError(f"lab_name of a lab of VMs has up to {_VM_NAME} characters (got {self.name!r})")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Lab:
        taken: dict[IPv4Address, str] = {self.gateway: "this host"}
        for node in self.nodes:
            if node.address not in self.network or node.address in (
                self.network.network_address,
                self.network.broadcast_address,
            ):
                raise ValueError(
                    f"{node.name}: ansible_host {node.address} is no host address of {self.network}"
                )
            if node.address in taken:
                raise ValueError(
                    f"{node.name}: ansible_host {node.address} is taken by {taken[node.address]}"
                )
            taken[node.address] = node.name
        groups = {group for node in self.nodes for group in node.groups} | {"all"}
        for mount in self.mounts:
            for group in (*(mount.groups or ()), *mount.writable_on):
                if group not in groups:
                    raise ValueError(f"lab_mounts {mount.target}: no host is in the group `{group}`")
        return self

    @property
    def gateway(self) -> IPv4Address:
        """This host's address on the lab's bridge."""
        return self.network.network_address + 1

    @property
    def bridge(self) -> str:
        """The bridge's interface name (at most 15 characters, the kernel's limit)."""
        return f"sr-{self.name}"

    @property
    def rail_bridges(self) -> tuple[str, ...]:
        """The rails' switches; a dot keeps them apart from any lab's own bridge."""
        return tuple(f"{self.bridge}.r{rail}" for rail in range(self.rails))

    @property
    def connect_seconds(self) -> int:
        """How long SSH's handshake may take: an emulated machine computes it slowly."""
        return 2 if self.kind == "container" else 15

    @property
    def status_seconds(self) -> int:
        """How long a node may take to say how it is."""
        return 15 if self.kind == "container" else 60

    @property
    def known_hosts(self) -> Path:
        """The file that holds the nodes' host keys."""
        return self.key.with_name("known_hosts")

    def select(self, names: list[str]) -> tuple[Node, ...]:
        """The nodes called `names`, all when there are none. Raises LabError for an unknown name."""
        known = {node.name: node for node in self.nodes}
        for name in names:
            if name not in known:
                raise LabError(f"{self.inventory}: no host `{name}`; it has {', '.join(known)}")
        return tuple(known[name] for name in known if not names or name in names)


def load(inventory: Path) -> Lab:
    """Read the lab of `inventory`. Raises LabError naming inventory, host, key and cure."""
    if not inventory.exists():
        raise LabError(f"{inventory}: no such inventory; name one with -i, such as -i inventories/lab")
    # A machine in quarantine is a machine of the lab: somebody has to be able to repair it.
    every = {"SPLITRAIL_QUARANTINE": "ignore"}
    said = run_as_invoker(["ansible-inventory", "-i", str(inventory), "--list"], every)
    return parse(inventory, json.loads(said))


def parse(inventory: Path, data: dict[str, Any]) -> Lab:
    """Make a Lab of what `ansible-inventory --list` printed."""
    hosts: dict[str, dict[str, Any]] = data.get("_meta", {}).get("hostvars", {})
    if not hosts:
        raise LabError(f"{inventory}: it has no host with variables; give each an ansible_host")
    folder = (inventory if inventory.is_dir() else inventory.parent).resolve()
    shared: dict[str, tuple[str, Any]] = {}
    nodes = []
    for name, raw in sorted(hosts.items()):
        values = _rendered(inventory, name, {**raw, "inventory_dir": str(folder)})
        nodes.append({"name": name, "address": values.get("ansible_host"), "groups": _groups(data, name)})
        for key, value in values.items():
            if key.startswith("lab_") or key in ("ansible_user", "ansible_ssh_private_key_file"):
                first, seen = shared.setdefault(key, (name, value))
                if seen != value:
                    raise LabError(
                        f"{inventory}: {key} is {seen!r} on {first} and {value!r} on {name}; "
                        f"set it once, in group_vars/all"
                    )
    known = {field.alias for field in Lab.model_fields.values() if field.alias}
    for key in shared:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise LabError(
                f"{inventory}: {key} is no key of the lab" + (f"; did you mean {near[0]}?" if near else "")
            )
    try:
        lab = Lab.model_validate(
            {"inventory": inventory, "nodes": nodes} | {key: value for key, (_, value) in shared.items()}
        )
    except ValidationError as error:
        raise LabError("\n".join(_explain(inventory, nodes, item) for item in error.errors())) from error
    return lab.model_copy(update={"key": Path(lab.key).resolve()})


def _rendered(inventory: Path, host: str, values: dict[str, Any]) -> dict[str, Any]:
    """Values that the lab reads, with templates such as `{{ inventory_dir }}` filled in.

    `ansible-inventory` prints variables untemplated, and the lab's few need nothing but other plain ones.
    """
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 (paths, not HTML)
    out: dict[str, Any] = {}
    for key, value in values.items():
        if not (key.startswith("lab_") or key in _CURES):
            continue
        try:
            out[key] = jinja.from_string(value).render(values) if isinstance(value, str) else value
        except jinja2.TemplateError as error:
            raise LabError(
                f"{inventory}: {key} of {host}: {error}; the lab fills in plain variables only"
            ) from error
    return out


def _groups(data: dict[str, Any], host: str) -> tuple[str, ...]:
    """Groups that `host` is in, by itself or through child groups; neither `all` nor `ungrouped`."""

    def holds(group: str) -> bool:
        body = data.get(group, {})
        return host in body.get("hosts", []) or any(holds(child) for child in body.get("children", []))

    return tuple(sorted(name for name in data if name not in ("_meta", "all", "ungrouped") and holds(name)))


def _explain(inventory: Path, nodes: list[dict[str, Any]], item: Any) -> str:
    """One line for one finding: where, what, cure."""
    where = list(item["loc"])
    said = item["msg"].removeprefix("Value error, ")
    if where and where[0] == "nodes":
        host = nodes[where[1]]["name"]
        if where[2] == "name":
            return f"{inventory}: {host}: not a host name; use a-z, 0-9 and -"
        where = ["ansible_host"]
        said = f"{host}: {said}" if item["input"] is not None else f"{host}: not set"
    if not where:
        return f"{inventory}: {said}"
    key = str(where[0])
    rest = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where[1:])
    cure = f"; cure: {_CURES[key]}" if key in _CURES else ""
    got = "" if item["type"] == "missing" or item["input"] is None else f" (got {item['input']!r})"
    return f"{inventory}: {key}{rest}: {said}{got}{cure}"
