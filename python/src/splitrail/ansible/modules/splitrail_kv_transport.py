#!/usr/bin/python
"""Prove through the serving image that its own NIXL and UCX use the declared transport."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade
from ansible.module_utils.splitrail_lines import ask

DOCUMENTATION = r"""
module: splitrail_kv_transport
short_description: Read a peer's memory through the serving image
description:
  - Three calls on every node make the proof. O(state=listening) starts the program in the image and returns
    once it answers, O(state=measured) reads the next node of the ring, O(state=stopped) ends it.
  - The container is run under systemd with the limits, devices, network and environment of Ray's.
  - Leaves nothing on the node and changes nothing there; does nothing in check mode.
options:
  state:
    description: Which of the three calls this is.
    type: str
    choices: [listening, measured, stopped]
    required: true
  node:
    description: This node's name in O(nodes).
    type: str
    required: true
  nodes:
    description: The management address of every node of the ring, by name.
    type: dict
    required: true
  transport:
    description: The declared transport.
    type: str
    choices: [rdma, tcp]
    required: true
  rails:
    description: The rails of this node, each with C(rail) and C(rdma_device); none for TCP.
    type: list
    elements: dict
    default: []
  engine:
    description: What runs the image.
    type: str
    default: podman
  image:
    description: The serving image.
    type: str
    required: true
  program:
    description: Path of the program on the node; its folder is shown to the container.
    type: path
    required: true
  env:
    description: Environment of the container, as Ray's.
    type: dict
    default: {}
  volumes:
    description: Volumes of the container, as Ray's.
    type: list
    elements: str
    default: []
  options:
    description: Further options of the container, as Ray's.
    type: list
    elements: str
    default: []
  memory:
    description: Kind of memory that is read.
    type: str
    choices: [DRAM, VRAM]
    required: true
  mib:
    description: How much is read, for each rail.
    type: int
    required: true
  port:
    description: TCP port on which the nodes tell each other what to read.
    type: int
    required: true
  token:
    description: A secret of this run, the same on all nodes.
    type: str
    required: true
  timeout_s:
    description: Longest time for the start of the program, and for each transfer.
    type: float
    required: true
author: The splitrail authors
"""

RETURN = r"""
checks:
  description: The findings, for M(splitrail_verdict).
  returned: O(state=measured)
  type: list
  elements: dict
"""

Check = dict[str, Any]
Json = dict[str, Any]

UNIT = "splitrail-kv-transport"
FOLDER = Path("/run/splitrail-kv-transport")
IN_CONTAINER = "/splitrail-kv-transport"
PROGRAMS = "/splitrail-programs"
ALL = "all rails"

# Of the payload. Less over RDMA means that a part went another way; headers and retries only add.
LEAST_RDMA = 0.9
# Of the payload. What Ansible and monitoring send meanwhile stays far below; a payload over TCP does not.
MOST_OTHER = 0.25
# The path MTUs of RDMA, and what a RoCE v2 packet carries beside its payload (IP, UDP, BTH, ICRC, ...).
RDMA_MTUS = (4096, 2048, 1024, 512, 256)
RDMA_HEADERS = 80


def next_of(node: str, nodes: dict[str, str]) -> str:
    """The node that this one reads from; "" when there is no other."""
    names = sorted(nodes)
    if node not in names or len(names) < 2:  # noqa: PLR2004  # a ring of one measures nothing
        return ""
    return names[(names.index(node) + 1) % len(names)]


def ends_of(rails: list[Json]) -> dict[str, list[str]]:
    """What is measured, and the RDMA devices that carry it: the rendered settings, then each rail alone."""
    devices = [str(rail["rdma_device"]) for rail in sorted(rails, key=lambda rail: int(rail["rail"]))]
    each = {f"rail{rail['rail']}": [str(rail["rdma_device"])] for rail in rails}
    return {ALL: devices, **(each if len(each) > 1 else {})}


def rdma_mtu(netdev_mtu: int) -> int:
    """The path MTU that RDMA uses over a NIC of this MTU."""
    return next((mtu for mtu in RDMA_MTUS if mtu + RDMA_HEADERS <= netdev_mtu), RDMA_MTUS[-1])


def rdma_bytes(before: Json, after: Json, devices: list[str], mtu: int) -> int:
    """Bytes that came in over these RDMA devices.

    An adapter counts them (in words of four bytes). Soft-RoCE counts packets only, each of which carries one
    path MTU at most, so what is returned for it is an upper bound that a payload must reach.
    """
    total = 0
    for name in devices:
        old, new = before["rdma"].get(name, {}), after["rdma"].get(name, {})
        if "port_rcv_data" in new:
            total += 4 * (new["port_rcv_data"] - old.get("port_rcv_data", 0))
        elif "rcvd_pkts" in new:
            total += rdma_mtu(mtu) * (new["rcvd_pkts"] - old.get("rcvd_pkts", 0))
    return total


def other_bytes(before: Json, after: Json, devices: list[str], mtu: int) -> int:
    """Bytes that came in beside RDMA.

    An adapter's RDMA does not pass the kernel, so whatever the network interfaces counted is other traffic.
    Soft-RoCE's packets do pass them; there what its packets can have carried at most is taken off.
    """
    total = sum(count - before["net"].get(name, 0) for name, count in after["net"].items())
    if all("port_rcv_data" in after["rdma"].get(name, {}) for name in devices):
        return int(total)
    return max(0, int(total) - rdma_bytes(before, after, devices, mtu))


def transports(log: list[str]) -> set[str]:
    """The transports that UCX named for its connections, such as ``rc_mlx5`` and ``tcp``."""
    found: set[str] = set()
    for line in log:
        found.update(re.findall(r"(?<![\w/.])([a-z]\w*)/[\w.-]+", line.partition("cfg#")[2]))
    return found


def made(subject: str, way: Json, found: Json) -> list[Check]:
    """Transfer and content; ``way`` says who reads from whom and over which devices."""
    node, peer, want = way["node"], way["peer"], way["tls"]
    hint = (
        f"Compare UCX_TLS, UCX_NET_DEVICES and the RDMA devices (`rdma link`) of {node} and {peer}, and run "
        "playbooks/fabric.yml."
    )
    for host, tls in ((node, found["tls"]), (peer, found["peer_tls"])):
        if tls != want:
            hint = f"Take what sets UCX_TLS to {tls or 'nothing'} on {host} away: the inventory says {want}."
    state = found["state"] if found["state"] == "DONE" else f"{found['state']} after {found['seconds']} s"
    checks = [check("validate.transfer", subject, found["state"] == "DONE", state, "DONE", hint=hint)]
    if found["state"] != "DONE":
        return [*checks, unmade("validate.data", subject, "nothing was read", 0, unit="wrong KiB", hint=hint)]
    wrong = int(found["wrong_kib"])
    hint = (
        f"Do not serve: what {node} read is not what {peer} holds. Look at the firmware of the NICs and at "
        "memory errors."
    )
    return [*checks, check("validate.data", subject, wrong == 0, wrong, 0, unit="wrong KiB", hint=hint)]


def over_rdma(subject: str, way: Json, found: Json) -> list[Check]:
    """That the payload went over the rail's RDMA device and nowhere else."""
    payload, devices, mtu = way["bytes"], way["devices"], way["mtu"]
    cure = (
        f"Take tcp out of UCX_TLS on {way['node']} and {way['peer']}, and see that the container has "
        f"/dev/infiniband and that `rdma link` shows {', '.join(devices)} as active."
    )
    least, most = int(LEAST_RDMA * payload), int(MOST_OTHER * payload)
    names = transports(found["log"])
    if found["state"] != "DONE":
        why = "nothing was read"
        return [
            unmade("validate.rdma_bytes", subject, why, least, unit="bytes", hint=cure),
            unmade("validate.other_bytes", subject, why, most, unit="bytes", hint=cure),
            check("validate.no_tcp", subject, False, ", ".join(sorted(names)) or why, "no tcp", hint=cure),
        ]
    rdma = rdma_bytes(found["before"], found["after"], devices, mtu)
    other = other_bytes(found["before"], found["after"], devices, mtu)
    named = check(
        "validate.no_tcp", subject, "tcp" not in names, ", ".join(sorted(names)), "no tcp", hint=cure
    )
    if not names:
        named = unmade("validate.no_tcp", subject, "UCX named no transport", "no tcp", hint=cure)
    return [
        check("validate.rdma_bytes", subject, rdma >= least, rdma, least, unit="bytes at least", hint=cure),
        check("validate.other_bytes", subject, other <= most, other, most, unit="bytes at most", hint=cure),
        named,
    ]


class Proof:
    """The three calls."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.want: Json = module.params
        self.node: str = self.want["node"]
        self.nodes = {name: str(address) for name, address in self.want["nodes"].items()}
        self.rdma = self.want["transport"] == "rdma"
        self.ends = ends_of(self.want["rails"]) if self.rdma else {ALL: []}

    def settings(self) -> Json:
        """What the program is told. The first end has the environment as rendered."""
        return {
            "node": self.node,
            "address": self.nodes[self.node],
            "port": self.want["port"],
            "token": self.want["token"],
            "bytes": self.want["mib"] << 20,
            "memory": self.want["memory"],
            "ends": {
                label: "" if label == ALL else ",".join(f"{device}:1" for device in devices)
                for label, devices in self.ends.items()
            },
            "deadline_s": self.deadline(),
        }

    def deadline(self) -> float:
        """Longest life of the program: its start, a transfer an end, and as much again for slow peers."""
        return float(2 * self.want["timeout_s"] * (1 + len(self.ends)))

    def command(self) -> list[str]:
        """The container as the unit of Ray runs it (roles/ray_cluster/templates/ray.service.j2)."""
        want = self.want
        volumes = [
            *want["volumes"],
            f"{FOLDER}:{IN_CONTAINER}",
            f"{Path(want['program']).parent}:{PROGRAMS}:ro",
        ]
        return [
            "systemd-run",
            f"--unit={UNIT}",
            "--collect",
            "--quiet",
            "--property=LimitNOFILE=infinity",
            "--property=LimitMEMLOCK=infinity",
            f"--property=RuntimeMaxSec={self.deadline():.0f}",
            f"/usr/bin/{want['engine']}",
            *("run", "--rm", "--init", "--name", UNIT),
            *("--network", "host", "--ipc", "host", "--log-driver", "none"),
            *("--env-file", str(FOLDER / "env")),
            *(part for volume in volumes for part in ("--volume", volume)),
            *(part for option in want["options"] for part in shlex.split(option)),
            want["image"],
            *("python", f"{PROGRAMS}/{Path(want['program']).name}", f"{IN_CONTAINER}/settings.json"),
        ]

    def listen(self) -> None:
        """Start the program and wait until it answers or is gone; why it is gone ``measure`` says."""
        self.stop()
        FOLDER.mkdir(mode=0o700)
        private(FOLDER / "settings.json", json.dumps(self.settings()))
        private(FOLDER / "env", "".join(f"{name}={value}\n" for name, value in self.want["env"].items()))
        self.module.run_command(self.command(), check_rc=True)
        until = time.monotonic() + self.want["timeout_s"]
        while time.monotonic() < until:
            try:
                self.own({"ask": "hello"}, 5)
            except (OSError, RuntimeError, ValueError):
                state = self.module.run_command(["systemctl", "is-active", UNIT])[1].strip()
                if state not in ("active", "activating"):
                    return
                time.sleep(0.5)  # the image's libraries take seconds to load
            else:
                return

    def own(self, asked: Json, timeout_s: float) -> Json:
        """What this node's program answers."""
        given = {"token": self.want["token"], **asked}
        answer: Json = ask(self.nodes[self.node], self.want["port"], given, timeout_s)
        return answer

    def measure(self) -> list[Check]:
        """The findings about each rail to the next node of the ring."""
        peer = next_of(self.node, self.nodes)
        if not peer:
            hint = "Name this node and its peers, each with its address, in kv_transport_nodes."
            subject = f"transport: {self.want['transport']} (declared)"
            return [unmade("validate.transfer", subject, "no peer to read from", "a peer", hint=hint)]
        return [
            *self.effective(),
            *(one for label, devices in self.ends.items() for one in self.read(peer, label, devices)),
        ]

    def effective(self) -> list[Check]:
        """Whether the container has the UCX_TLS that the inventory declares."""
        required = self.want["env"].get("UCX_TLS", "")
        hint = (
            f"Take what overrides UCX_TLS on {self.node} away: the image's own ENV, or an --env among the "
            "options of Ray's container."
        )
        try:
            tls = str(self.own({"ask": "hello"}, 10)["tls"])
        except (OSError, RuntimeError, ValueError) as error:
            return [unmade("validate.ucx_tls", "UCX_TLS in the container", str(error), required, hint=hint)]
        return [
            check("validate.ucx_tls", "UCX_TLS in the container", tls == required, tls, required, hint=hint)
        ]

    def read(self, peer: str, label: str, devices: list[str]) -> list[Check]:
        """The findings about one end."""
        subject = f"transport: tcp (declared), {self.node} <- {peer}"
        if self.rdma:
            subject = f"{label} ({', '.join(devices)}), {self.node} <- {peer}"
        asked = {
            "ask": "read",
            "end": label,
            "address": self.nodes[peer],
            "timeout_s": self.want["timeout_s"],
        }
        try:
            found = self.own(asked, self.want["timeout_s"] + 30)
        except (OSError, RuntimeError, ValueError) as error:
            why = f"{error}{self.last_words()}"
            hint = (
                f"Read what was measured, and `journalctl -u {UNIT}`, on {self.node} and {peer}: UCX there "
                f"cannot use {', '.join(devices) or 'the network'} with its UCX_TLS."
            )
            return [unmade("validate.transfer", subject, why, "DONE", hint=hint)]
        way = {
            "node": self.node,
            "peer": peer,
            "tls": self.want["env"].get("UCX_TLS", ""),
            "bytes": self.want["mib"] << 20,
            "devices": devices,
            "mtu": largest_mtu(Path("/sys/class/net")),
        }
        checks = made(subject, way, found)
        return [*checks, *over_rdma(subject, way, found)] if self.rdma else checks

    def last_words(self) -> str:
        """The end of what UCX and NIXL wrote, when they wrote of an error."""
        try:
            lines = (FOLDER / "ucx.log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        wrong = [line for line in lines if "ERROR" in line or "Error" in line or line.startswith("E")]
        return f"; {wrong[-1].strip()[-300:]}" if wrong else ""

    def stop(self) -> None:
        """End the program and take away what it left; one that is gone already is fine."""
        run = self.module.run_command
        if run(["systemctl", "is-active", UNIT])[1].strip() in ("active", "activating", "deactivating"):
            # One that does not answer is ended by systemd.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self.own({"ask": "stop"}, 5)
            run(["systemctl", "stop", UNIT])
        run([self.want["engine"], "rm", "--force", "--ignore", UNIT])
        for file in FOLDER.glob("*"):
            file.unlink()
        if FOLDER.exists():
            FOLDER.rmdir()


def largest_mtu(root: Path) -> int:
    """The largest MTU of the node's interfaces, its loopback aside: no TCP segment from outside is longer."""
    return max(
        (int(file.read_text()) for file in root.glob("*/mtu") if file.parent.name != "lo"), default=1500
    )


def private(path: Path, text: str) -> None:
    """Write a file that root alone may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def main() -> None:
    """Do what ``state`` asks."""
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "state": {**text, "choices": ["listening", "measured", "stopped"]},
            "node": text,
            "nodes": {"type": "dict", "required": True},
            "transport": {**text, "choices": ["rdma", "tcp"]},
            "rails": {"type": "list", "elements": "dict", "default": []},
            "engine": {"type": "str", "default": "podman"},
            "image": text,
            "program": {"type": "path", "required": True},
            "env": {"type": "dict", "default": {}},
            "volumes": {"type": "list", "elements": "str", "default": []},
            "options": {"type": "list", "elements": "str", "default": []},
            "memory": {**text, "choices": ["DRAM", "VRAM"]},
            "mib": {"type": "int", "required": True},
            "port": {"type": "int", "required": True},
            "token": {**text, "no_log": True},
            "timeout_s": {"type": "float", "required": True},
        },
        supports_check_mode=True,
    )
    proof = Proof(module)
    if module.check_mode or proof.node not in proof.nodes:
        module.exit_json(changed=False, checks=proof.measure() if not module.check_mode else [])
    if module.params["state"] == "measured":
        module.exit_json(changed=False, checks=proof.measure())
    if module.params["state"] == "listening":
        proof.listen()
    else:
        proof.stop()
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
