"""Write an inventory from what nodes are: a shipped one of their kind, with what was found in its place."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from splitrail.discover import DiscoverError, Node, rails_of
from splitrail.inventory.check import check
from splitrail.inventory.fault import InventoryError
from splitrail.project import Project

# The shipped inventory for each maker of GPUs.
LIKE = {"amd": "mi325x", "nvidia": "h200"}


@dataclass(frozen=True)
class Roles:
    """What a user decides: which host is the head, and which pool each host is in."""

    head: str
    prefill: tuple[str, ...]
    decode: tuple[str, ...]

    @classmethod
    def of(cls, hosts: Sequence[str], head: str | None, prefill: str | None, decode: str | None) -> Roles:
        """From the options. One host alone is everything; of several each must be said.

        Raises DiscoverError.
        """
        if len(hosts) == 1:
            return cls(hosts[0], (), ())
        if head is None or prefill is None or decode is None:
            raise DiscoverError(
                f"{len(hosts)} hosts ({', '.join(hosts)}): which is the head and which prefill or decode "
                "cannot be seen on them; say --head HOST --prefill HOSTS --decode HOSTS"
            )
        pools = [tuple(filter(None, text.split(","))) for text in (prefill, decode)]
        unknown = sorted({head, *pools[0], *pools[1]} - set(hosts))
        if unknown:
            raise DiscoverError(f"{', '.join(unknown)}: not among the hosts: {', '.join(hosts)}")
        both = sorted(set(pools[0]) & set(pools[1]))
        neither = sorted(set(hosts) - {head, *pools[0], *pools[1]})
        if both or neither or not all(pools):
            raise DiscoverError(
                f"--prefill and --decode: each host in one of them, and each with one at least "
                f"(in both: {', '.join(both) or 'none'}; in neither: {', '.join(neither) or 'none'})"
            )
        return cls(head, *pools)


def write(
    project: Project,
    out: Path,
    nodes: Mapping[str, Node],
    connection: Mapping[str, Mapping[str, Any]],
    *,
    roles: Roles,
    like: str | None,
) -> list[str]:
    """Write the inventory ``out`` and return what is left to decide.

    ``connection``: how each host was reached.

    Raises DiscoverError where the nodes are of no known kind or unlike each other, ``out`` exists or lies
    elsewhere than in the project's inventories, or what was made does not pass `splitrail inventory check`.
    """
    if out.resolve().parent != project.root / "inventories":
        raise DiscoverError(f"--out {out}: name a folder in inventories/, beside releases and topologies")
    if out.exists():
        raise DiscoverError(f"--out {out}: is there already; name another folder or remove it")
    base = project.root / "inventories" / _like(nodes, like)
    if not (base / "hosts.yml").is_file():
        raise DiscoverError(f"--like {base.name}: no such inventory in {base.parent}")
    _same(nodes)
    shutil.copytree(base, out)
    try:
        left = _fill(out, base, nodes, connection, roles)
        check(project, str(out))
    except InventoryError as error:
        shutil.rmtree(out)
        raise DiscoverError(f"what was found makes no inventory that passes the check:\n{error}") from error
    except BaseException:
        shutil.rmtree(out)
        raise
    return left


def _like(nodes: Mapping[str, Node], like: str | None) -> str:
    if like is not None:
        return like
    kinds = {node.gpu_kind for node in nodes.values()}
    if len(kinds) == 1 and (kind := kinds.pop()) in LIKE:
        return LIKE[kind]
    raise DiscoverError(
        "the nodes show no GPUs, or GPUs of several makers, so the kind of inventory is not known: say "
        "--like mi325x, h200, or another folder of inventories/"
    )


def _same(nodes: Mapping[str, Node]) -> None:
    """One inventory holds one kind of server."""
    counts = {host: len(node.gpus) for host, node in nodes.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{host} {count}" for host, count in counts.items())
        raise DiscoverError(
            f"the nodes differ in their GPUs ({told}): repair them, or discover each kind alone"
        )


def _fill(
    out: Path,
    base: Path,
    nodes: Mapping[str, Node],
    connection: Mapping[str, Mapping[str, Any]],
    roles: Roles,
) -> list[str]:
    main = out / "group_vars/all/main.yml"
    text = _set(main.read_text(encoding="utf-8"), "cluster_name", out.name)
    first = next(iter(nodes.values()))
    if first.gpus:
        text = _set(text, "gpus_per_node", len(first.gpus))
    gids = {tuple(node.gpu_gids) for node in nodes.values() if node.gpu_gids}
    left = []
    if len(gids) == 1:
        text = _set(text, "gpu_device_gids", list(gids.pop()))
    elif gids:
        left.append("gpu_device_gids: the nodes differ; set it in host_vars")
    if roles.prefill:
        found = re.search(r"^topology_name: (\S+?)-\d+p\d+d\s*$", text, re.MULTILINE)
        if found:
            name = f"{found[1]}-{len(roles.prefill)}p{len(roles.decode)}d"
            text = _set(text, "topology_name", name)
            left.append(f"topology_name: {name} follows from the pools; see that it is the model you mean")
        else:
            left.append("topology_name: choose one that fits the pools")
    main.write_text(text, encoding="utf-8")
    positions = (base / "hosts.yml").read_text(encoding="utf-8").count("rail_position") > 0
    _hosts(out, connection, roles, positions=positions)
    return [*left, *_rails(out, nodes)]


def _set(text: str, key: str, value: Any) -> str:
    """Put a value in the place of another on its line; a key that the base does not have is not added."""
    line = f"{key}: {yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]}"
    return re.sub(rf"^{key}:.*$", line, text, count=1, flags=re.MULTILINE)


def _hosts(out: Path, connection: Mapping[str, Mapping[str, Any]], roles: Roles, *, positions: bool) -> None:
    hosts: dict[str, dict[str, Any]] = {}
    for number, (host, variables) in enumerate(connection.items()):
        hosts[host] = dict(variables) | ({"rail_position": number} if positions else {})
    if roles.prefill:
        groups: dict[str, Any] = {
            "head": {"hosts": {roles.head: hosts[roles.head]}},
            "prefill": {"hosts": {host: hosts[host] for host in roles.prefill}},
            "decode": {"hosts": {host: hosts[host] for host in roles.decode}},
            "workers": {"children": {"prefill": None, "decode": None}},
        }
    else:
        only = {roles.head: hosts[roles.head]}
        groups = {"head": {"hosts": only}, "workers": {"hosts": {roles.head: None}}}
        if (out / "group_vars/prefill.yml").exists():
            # The base tells pools by groups; one host is both, and its topology must be aggregated.
            groups["decode"] = {"hosts": {roles.head: None}}
            groups["prefill"] = {"hosts": {}}
    text = yaml.safe_dump({"all": {"children": groups}}, sort_keys=False).replace(": null", ":")
    (out / "hosts.yml").write_text(f"---\n# Written by `splitrail discover`.\n{text}", encoding="utf-8")


def _rails(out: Path, nodes: Mapping[str, Node]) -> list[str]:
    """Each host's rails into its host_vars; what is not known of them is said."""
    left = []
    declares = any("roce_nic_rails:" in path.read_text() for path in (out / "group_vars").rglob("*.yml"))
    for host, node in nodes.items():
        if not node.nics or not declares:
            continue
        rails, open_ = rails_of(node)
        left += open_
        if open_ or not rails:
            left.append(
                f"roce_nic_rails of {host}: not written; group_vars hold those of the reference cluster"
            )
            continue
        path = out / "host_vars" / f"{host}.yml"
        path.parent.mkdir(exist_ok=True)
        text = yaml.safe_dump({"roce_nic_rails": rails}, sort_keys=False)
        path.write_text(
            f"---\n# As its NICs were when `splitrail discover` looked.\n{text}", encoding="utf-8"
        )
    return left
