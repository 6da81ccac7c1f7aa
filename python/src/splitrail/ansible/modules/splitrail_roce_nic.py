#!/usr/bin/python
"""Bring the rails of a node into their declared state, or say how far they are from it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check

DOCUMENTATION = r"""
module: splitrail_roce_nic
short_description: Bring the rails of a node into their declared state
description:
  - Compares what the kernel says of each rail (name, link, MTU, addresses, rule, routes, sysctls) with
    what is declared.
  - With O(state=applied), lets systemd-networkd configure the rails that differ, sets their sysctls, and
    waits until nothing differs or O(timeout_s) is over. Renames no interface, for that is udev's, and
    brings up no link.
options:
  rails: {description: The rails as the filter C(splitrail_rails) gives them., type: list, elements: dict,
          required: true}
  mtu: {description: MTU in bytes., type: int, required: true}
  sysctl: {description: Settings under C(net.ipv4.conf) of each rail., type: dict, required: true}
  state: {description: Whether to change anything., type: str, choices: [applied, measured], default: applied}
  reload: {description: Whether files of systemd-networkd have changed., type: bool, default: false}
  sysfs: {description: Where the kernel shows its devices., type: path, default: /sys}
  timeout_s: {description: Longest wait for systemd-networkd in seconds., type: int, default: 15}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_roce_nic:
    rails: "{{ roce_nic_rails | splitrail_rails }}"
    mtu: 9000
    sysctl: {rp_filter: 2}
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
missing: {description: Rails whose NIC is not in the node., type: list, elements: str, returned: always}
renamed: {description: Rails whose NIC has another name., type: list, elements: str, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

Rail = dict[str, Any]
Check = dict[str, Any]

BDF = re.compile(r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
# What systemd-networkd can set right; a name or a link without carrier it cannot.
NETWORKD = ("roce_nic.mtu", "roce_nic.address", "roce_nic.rule", "roce_nic.route")
SYSCTL = "roce_nic.sysctl"


class Unreadable(Exception):
    """The node's network cannot be read or set; the message says why."""


def run(*command: str) -> str:
    """The output of a command. Raises Unreadable with its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unreadable(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise Unreadable(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


@dataclass
class Node:
    """Where readings come from and changes go to; the tests put files and answers of their own in place."""

    root: Path = Path("/")
    sysfs: Path | None = None  # below the root, where not told
    run: Callable[..., str] = run
    links: dict[str, dict[str, Any]] = field(default_factory=dict)
    rules: list[dict[str, Any]] = field(default_factory=list)
    routes: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> None:
        """Take stock. Raises Unreadable."""
        self.links = {link["ifname"]: link for link in self._ip("address")}
        self.rules = self._ip("rule", "show")
        self.routes = self._ip("route", "show", "table", "all")

    def _ip(self, *what: str) -> list[dict[str, Any]]:
        text = self.run("ip", "-N", "-j", "-4" if what[0] != "address" else "-d", *what)
        try:
            # Nothing to show is no output at all with some versions, and empty objects with others.
            return [entry for entry in json.loads(text or "[]") if entry]
        except ValueError as error:
            raise Unreadable(f"ip {' '.join(what)} gave no JSON: {error}") from error

    def pci(self, name: str) -> str:
        """The PCI address of an interface's device; empty when it has none."""
        device = (self.sysfs or self.root / "sys") / "class/net" / name / "device"
        if not device.exists():
            return ""
        real = device.resolve()
        # A virtio NIC has a device of its own below the one of PCI.
        return next((path.name for path in (real, *real.parents) if BDF.match(path.name)), "")

    def mac(self, name: str) -> str:
        """The address burnt into the NIC where the driver tells it, else the one in use."""
        link = self.links[name]
        return str(link.get("permaddr") or link.get("address", ""))

    def owner(self, rail: Rail) -> str:
        """The present name of the NIC that a rail declares; empty when the node has no such NIC."""
        found = [
            name for name in self.links if (self.pci(name) if rail["pci"] else self.mac(name)) == which(rail)
        ]
        # A bridge or VLAN over a NIC bears its hardware address too; the rail's own name goes first.
        return rail["name"] if rail["name"] in found else min(found, default="")

    def sysctl(self, rail: str, name: str) -> str:
        """A setting of an interface; empty when it has none of that name."""
        path = self._sysctl_path(rail, name)
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def set_sysctl(self, rail: str, name: str, value: str) -> None:
        """Set it. Raises Unreadable."""
        path = self._sysctl_path(rail, name)
        try:
            path.write_text(f"{value}\n", encoding="utf-8")
        except OSError as error:
            raise Unreadable(f"{path}: {error}") from error

    def _sysctl_path(self, rail: str, name: str) -> Path:
        return self.root / "proc/sys/net/ipv4/conf" / rail / name


def which(rail: Rail) -> str:
    """The PCI or hardware address that declares a rail's NIC."""
    return str(rail["pci"] or rail["mac"])


def measure(node: Node, rails: list[Rail], mtu: int, sysctl: dict[str, Any]) -> list[Check]:
    """All checks of all rails, from one reading of the node. Raises Unreadable."""
    node.read()
    checks = []
    for rail in rails:
        owner = node.owner(rail)
        checks.append(check_nic(rail, owner))
        if owner == rail["name"]:
            checks += check_rail(node, rail, mtu, sysctl)
    return checks


def check_nic(rail: Rail, owner: str) -> Check:
    """Whether the declared NIC is here and bears the rail's name."""
    name = rail["name"]
    if not owner:
        hint = "Compare roce_nic_rails with `lspci -D`, and look for the card."
    else:
        hint = (
            "Reboot the node, so that udev gives the NIC the name in "
            f"/etc/systemd/network/05-splitrail-{name}.link."
        )
    subject = f"{name} {which(rail)}"
    made: Check = check("roce_nic.nic", subject, owner == name, owner or "no such NIC", name, hint=hint)
    return made


def check_rail(node: Node, rail: Rail, mtu: int, sysctl: dict[str, Any]) -> list[Check]:
    """What the kernel says of a rail that bears its name."""
    name, link, table = rail["name"], node.links[rail["name"]], str(rail["table"])
    again = "Run this playbook again, and read `journalctl -u systemd-networkd` and `networkctl status"
    up = "LOWER_UP" in link["flags"]
    again = f"{again} {name}` if it does not help." if up else "Bring up the link: this comes with it."
    addresses = sorted(
        f"{info['local']}/{info['prefixlen']}"
        for info in link.get("addr_info", [])
        if info["family"] == "inet"
    )
    rules = sorted(
        str(rule["table"])
        for rule in node.rules
        if rule.get("src") == rail["ip"] and rule.get("srclen", 32) == 32  # noqa: PLR2004
    )
    wanted = {rail["network"]: "link", **({"default": rail["gateway"]} if rail["gateway"] else {})}
    routes = {
        str(route["dst"]): str(route.get("gateway", "link"))
        for route in node.routes
        if str(route.get("table", "254")) == table and route.get("dev") == name
    }
    checks = [
        check("roce_nic.link", name, up, "up" if up else "no carrier", "up",
              hint="Check cable, transceiver and switch port."),
        check("roce_nic.mtu", name, link["mtu"] == mtu, link["mtu"], mtu, unit="B", hint=again),
        check("roce_nic.address", name, addresses == [rail["address"]], ", ".join(addresses) or "none",
              rail["address"], hint=again),
        check("roce_nic.rule", f"{name} from {rail['ip']}", rules == [table], ", ".join(rules) or "none",
              f"table {table}", hint=again),
        check("roce_nic.route", f"{name} table {table}", routes == wanted, routes, wanted, hint=again),
    ]  # fmt: skip
    for setting, value in sorted(sysctl.items()):
        measured = node.sysctl(name, setting)
        subject = f"net.ipv4.conf.{name}.{setting}"
        checks.append(
            check(
                SYSCTL, subject, measured == str(value), measured or "no such setting", str(value), hint=again
            )
        )
    return checks


def rails_of(checks: list[Check], names: tuple[str, ...]) -> set[str]:
    """The rails that failed one of these checks."""
    return {made["subject"].split()[0] for made in checks if made["name"] in names and not made["ok"]}


def mendable(checks: list[Check]) -> set[str]:
    """The rails that systemd-networkd can set right: it gives nothing to one without carrier."""
    return rails_of(checks, NETWORKD) - rails_of(checks, ("roce_nic.link",))


def apply(node: Node, wanted: dict[str, Any], checks: list[Check]) -> list[Check]:
    """Set right what differs and wait until it is; returns the last checks. Raises Unreadable."""
    present = {made["required"] for made in checks if made["name"] == "roce_nic.nic" and made["ok"]}
    for made in checks:
        if made["name"] == SYSCTL and not made["ok"]:
            rail, setting = made["subject"].removeprefix("net.ipv4.conf.").split(".")
            node.set_sysctl(rail, setting, made["required"])
    rails = present if wanted["reload"] else mendable(checks)
    if wanted["reload"]:
        node.run("networkctl", "reload")
    if rails:
        node.run("networkctl", "reconfigure", *sorted(rails))
    deadline = time.monotonic() + wanted["timeout_s"]
    while True:
        checks = measure(node, wanted["rails"], wanted["mtu"], wanted["sysctl"])
        # systemd-networkd answers before it has done its work.
        if not mendable(checks) or time.monotonic() > deadline:
            return checks
        time.sleep(0.2)  # between two looks


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "rails": {"type": "list", "elements": "dict", "required": True},
            "mtu": {"type": "int", "required": True},
            "sysctl": {"type": "dict", "required": True},
            "state": {"type": "str", "choices": ["applied", "measured"], "default": "applied"},
            "reload": {"type": "bool", "default": False},
            "timeout_s": {"type": "int", "default": 15},
            "sysfs": {"type": "path", "default": "/sys"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    node = Node(sysfs=Path(wanted["sysfs"]))
    started = time.monotonic()
    changed = False
    try:
        checks = measure(node, wanted["rails"], wanted["mtu"], wanted["sysctl"])
        differs = mendable(checks) or any(made["name"] == SYSCTL and not made["ok"] for made in checks)
        if wanted["state"] == "applied" and (wanted["reload"] or differs):
            changed = True
            if not module.check_mode:
                checks = apply(node, wanted, checks)
    except Unreadable as error:
        module.fail_json(msg=f"the rails cannot be configured: {error}")
    missing = [rail["name"] for rail in wanted["rails"] if not node.owner(rail)]
    renamed = [rail["name"] for rail in wanted["rails"] if node.owner(rail) not in {"", rail["name"]}]
    seconds = round(time.monotonic() - started, 1)
    module.exit_json(changed=changed, checks=checks, missing=missing, renamed=renamed, seconds=seconds)


if __name__ == "__main__":
    main()
