"""The lab's bridge on this host, and the nodes' way out through it."""

from __future__ import annotations

import json
import re
from collections import Counter
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Any

from splitrail.lab.files import write
from splitrail.lab.run import LabError, run
from splitrail.lab.spec import Lab

_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def _ip(*argv: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(["ip", "-json", *argv]) or "[]")
    return found


def _table(lab: str) -> str:
    return f"splitrail-lab-{lab}"


def loss_table(lab: str) -> str:
    """nft's table, of the family bridge, of links that lose packets."""
    return _table(lab)


def interfaces() -> dict[str, dict[str, Any]]:
    """This host's interfaces by name, as `ip` shows them."""
    return {link["ifname"]: link for link in _ip("-details", "link", "show")}


def ensure(lab: Lab, saved_forward: Path) -> None:
    """Make or heal the bridge, forwarding and masquerading; `saved_forward` keeps the old ip_forward."""
    if lab.bridge not in interfaces():
        run(["ip", "link", "add", "name", lab.bridge, "type", "bridge"])
    run(["ip", "address", "replace", f"{lab.gateway}/{lab.network.prefixlen}", "dev", lab.bridge])
    run(["ip", "link", "set", "dev", lab.bridge, "up"])
    for bridge in lab.rail_bridges:
        _ensure_rail(bridge)
    if not saved_forward.exists():
        write(saved_forward, _FORWARD.read_text())
    _FORWARD.write_text("1\n")
    # Declared anew in one transaction: what was there is replaced, and nobody sees it missing.
    table = _table(lab.name)
    run(
        ["nft", "--file", "-"],
        stdin=f"add table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n"
        f"  chain postrouting {{\n    type nat hook postrouting priority srcnat;\n"
        f'    ip saddr {lab.network} oifname != "{lab.bridge}" masquerade\n  }}\n}}\n',
    )
    _admit(lab)


def _ensure_rail(bridge: str) -> None:
    """Make or heal a rail's switch: this host has no address on it, and takes no part in it."""
    if bridge not in interfaces():
        run(["ip", "link", "add", "name", bridge, "type", "bridge", "mcast_snooping", "0"])
        run(["ip", "link", "set", "dev", bridge, "addrgenmode", "none"])
    # Set by hand, it no longer follows the smallest MTU of its ports.
    run(["ip", "link", "set", "dev", bridge, "mtu", "9000", "up"])


def attach(interface_index: int, bridge: str) -> None:
    """Put the interface with `interface_index` on `bridge`, as after the bridge was made anew."""
    name = next((name for name, link in interfaces().items() if link["ifindex"] == interface_index), None)
    if name and interfaces()[name].get("master") != bridge:
        run(["ip", "link", "set", "dev", name, "master", bridge, "up"])


def detach(machine: str) -> None:
    """Remove the host's end of a dead machine's veth, which the kernel else does in its own time.

    nspawn could not start the machine again until then: it names the interface after the machine, and
    shortens a long name always to the same one, with the long one as altname.
    """
    long = f"vb-{machine}"
    for name, link in interfaces().items():
        if long in (name, *link.get("altnames", ())):
            run(["ip", "link", "delete", "dev", name], ok=(0, 1))  # 1: the kernel was faster


def remove(lab: str, bridge: str) -> None:
    """Remove what `ensure` made, however much of it is there, and what makes links lose packets."""
    for chain, handle in _rules(_table(lab)):
        run(["nft", "delete", "rule", *chain, "handle", str(handle)])
    run(["nft", "--file", "-"], stdin=f"add table ip {_table(lab)}\ndelete table ip {_table(lab)}\n")
    run(
        ["nft", "--file", "-"],
        stdin=f"add table bridge {loss_table(lab)}\ndelete table bridge {loss_table(lab)}\n",
    )
    rail = re.compile(re.escape(bridge) + r"\.r[0-9]+")
    for name in interfaces():
        if name == bridge or rail.fullmatch(name):
            run(["ip", "link", "delete", "dev", name])


def restore_forward(saved: Path) -> None:
    """Set ip_forward to what it was before the first lab."""
    if saved.exists():
        _FORWARD.write_text(saved.read_text())
        saved.unlink()


def refuse_clash(lab: Lab) -> None:
    """Raise LabError when the lab's network or bridge name belongs to something else."""
    mine = interfaces().get(lab.bridge)
    if mine and mine.get("linkinfo", {}).get("info_kind") != "bridge":
        raise LabError(
            f"{lab.inventory}: an interface {lab.bridge} exists and is no bridge; set another lab_name"
        )
    taken: list[tuple[str, IPv4Network]] = []
    for link in _ip("-4", "address", "show"):
        for address in link.get("addr_info", []):
            network = ip_network(f"{address['local']}/{address['prefixlen']}", strict=False)
            if isinstance(network, IPv4Network):
                taken.append((str(link["ifname"]), network))
    for route in _ip("-4", "route", "show"):
        network = ip_network("0.0.0.0/0" if route["dst"] == "default" else route["dst"], strict=False)
        if isinstance(network, IPv4Network) and network.prefixlen:
            taken.append((str(route.get("dev", "a route")), network))
    for device, network in taken:
        if device == lab.bridge and network != lab.network:
            raise LabError(f"{lab.inventory}: {lab.bridge} carries {network} already; set another lab_name")
        if device != lab.bridge and network.overlaps(lab.network):
            raise LabError(
                f"{lab.inventory}: lab_network {lab.network} overlaps {network} on {device}; "
                f"set lab_network and every ansible_host to a private network that this host does not use"
            )


def resolv_conf(
    etc: Path = Path("/etc/resolv.conf"), uplink: Path = Path("/run/systemd/resolve/resolv.conf")
) -> str:
    """This host's name servers as nodes can use them: this host's loopback does not answer there.

    Raises LabError when there is none.
    """
    for path in (etc, uplink):
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if not re.match(r"\s*nameserver\s+(127\.|::1)", line)]
            if any(line.strip().startswith("nameserver") for line in kept):
                return "\n".join(kept) + "\n"
    raise LabError(
        f"{etc}: no name server but on this host's loopback, which nodes cannot reach; name another one"
    )


def hosts(lab: Lab) -> str:
    """A node's /etc/hosts."""
    names = "".join(f"{node.address} {node.name}\n" for node in lab.nodes)
    return f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{names}"


def _forward_chains() -> list[tuple[str, str, str]]:
    """Other programs' chains (Docker's, a firewall's) that judge forwarded packets."""
    chains = (
        item["chain"]
        for item in json.loads(run(["nft", "--json", "list", "chains"]))["nftables"]
        if "chain" in item
    )
    return [
        (chain["family"], chain["table"], chain["name"])
        for chain in chains
        if chain.get("hook") == "forward"
        and chain.get("type") == "filter"
        and chain["family"] in ("ip", "inet")
    ]


def _rules(comment: str) -> list[tuple[tuple[str, str, str], int]]:
    """Our own rules in others' chains, known by their comment."""
    found = []
    for chain in _forward_chains():
        listing = json.loads(run(["nft", "--json", "--handle", "list", "chain", *chain]))["nftables"]
        found += [
            (chain, item["rule"]["handle"])
            for item in listing
            if item.get("rule", {}).get("comment") == comment
        ]
    return found


def _admit(lab: Lab) -> None:
    """Let the lab's packets through chains that would drop them.

    Docker and most firewalls drop forwarded packets by default, and an `accept` in one's own table does not
    overrule a `drop` in theirs. What stays on a rail's bridge is judged as well where br_netfilter is loaded.
    """
    comment = _table(lab.name)
    bridges = (lab.bridge, *lab.rail_bridges)
    rules = _rules(comment)
    have = Counter(chain for chain, _ in rules)
    for chain in _forward_chains():
        ways = [(way, bridge) for bridge in bridges for way in ("iifname", "oifname")]
        if have[chain] != len(ways):
            for _, handle in (rule for rule in rules if rule[0] == chain):
                run(["nft", "delete", "rule", *chain, "handle", str(handle)])
            for way, bridge in ways:
                run(["nft", "insert", "rule", *chain, way, bridge, "accept", "comment", f'"{comment}"'])
