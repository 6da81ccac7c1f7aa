#!/usr/bin/python
"""Measure plain TCP from a node to its peers, by short-lived servers that the module starts itself."""

from __future__ import annotations

import hmac
import io
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_tcp_mesh
short_description: Measure plain TCP from a node to each of its peers
description:
  - Three calls on every node make a mesh. O(state=listening) opens a server and returns once it listens,
    O(state=measured) measures the way to each peer, O(state=stopped) ends the server.
  - A server that nobody stops ends by itself after O(deadline_s). It answers only who knows O(token).
  - Changes nothing on the node, in check mode or not.
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
    description: The address on the fabric of every node, this one included, by name.
    type: dict
    required: true
  port:
    description: The TCP port of the servers.
    type: int
    required: true
  token:
    description: A secret of this run, the same on all nodes.
    type: str
    required: true
  seconds:
    description: How long the throughput to a peer is measured.
    type: float
    default: 1.0
  deadline_s:
    description: Longest life of the server, in seconds.
    type: float
    default: 60.0
  rtt_ms:
    description: Longest median round trip, in milliseconds.
    type: float
    default: 5.0
  gbps:
    description: Lowest throughput, in Gb/s.
    type: float
    default: 0.5
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

CONNECT_S = (
    5.0  # a peer on the fabric answers in milliseconds; a dropped first SYN is sent again after 1 and 3 s
)
ANSWER_S = 10.0  # grace for a busy peer to answer
PINGS = 20
PING = b"splitrail-ping\n"
CHUNK = bytes(1 << 18)


class MeshError(Exception):
    """A peer did not answer as a mesh server does."""


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens on this address only. Raises OSError: address in use, or not of this node."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(128)
    except OSError:
        server.close()
        raise
    return server


def serve(server: socket.socket, token: str, deadline_s: float) -> None:
    """Answer peers until one that knows the token says stop or the deadline passes; then close the socket."""
    stopped = threading.Event()
    until = time.monotonic() + deadline_s
    with server:
        while not stopped.is_set() and time.monotonic() < until:
            # Short, so that a stop that arrived on another connection is seen soon.
            server.settimeout(min(0.2, max(0.01, until - time.monotonic())))
            try:
                peer, _ = server.accept()
            except TimeoutError:
                continue
            threading.Thread(target=_answer, args=(peer, token, stopped), daemon=True).start()


def _answer(peer: socket.socket, token: str, stopped: threading.Event) -> None:
    """One connection: a line of token and request, then what was requested; a peer that fails is let go."""
    with peer, peer.makefile("rwb") as stream:
        peer.settimeout(ANSWER_S)
        try:
            given, _, request = stream.readline(256).decode("ascii", "replace").strip().partition(" ")
            if not hmac.compare_digest(given.encode(), token.encode()):
                return
            if request == "stop":
                stopped.set()
            elif request == "echo":
                while line := stream.readline(256):
                    stream.write(line)
                    stream.flush()
            elif request == "sink":
                stream.write(b"%d %.6f\n" % _drain(stream))
                stream.flush()
        except OSError:
            return


def _drain(stream: io.BufferedRWPair) -> tuple[int, float]:
    """Bytes that came until the sender closed its side, and the seconds that this took."""
    buffer = memoryview(bytearray(len(CHUNK)))
    total = 0
    started = time.monotonic()
    while got := stream.readinto1(buffer):
        total += got
    return total, time.monotonic() - started


def background(task: Callable[[], None]) -> None:
    """Run the task in a process of its own that outlives this one and holds none of its streams."""
    if os.fork() != 0:
        return
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        task()
    finally:
        os._exit(0)


@dataclass(frozen=True)
class Peer:
    """How a peer's server is reached."""

    address: str
    port: int
    token: str

    def ask(self, request: str) -> socket.socket:
        """A connection on which the request was made. Raises OSError."""
        link = socket.create_connection((self.address, self.port), timeout=CONNECT_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.settimeout(ANSWER_S)
        link.sendall(f"{self.token} {request}\n".encode())
        return link

    def rtt_ms(self) -> float:
        """Median round trip of a small message, in milliseconds. Raises OSError, MeshError."""
        times = []
        with self.ask("echo") as link, link.makefile("rb") as stream:
            for _ in range(PINGS):
                started = time.monotonic()
                link.sendall(PING)
                if stream.readline(256) != PING:
                    raise MeshError(
                        "something else answers on this port, or the run's token is not known there"
                    )
                times.append(time.monotonic() - started)
        return statistics.median(times) * 1000

    def gbps(self, seconds: float) -> float:
        """Throughput to the peer as the peer saw it, in Gb/s. Raises OSError, MeshError."""
        with self.ask("sink") as link, link.makefile("rb") as stream:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                link.sendall(CHUNK)
            link.shutdown(socket.SHUT_WR)
            fields = stream.readline(256).split()
        if len(fields) != 2 or float(fields[1]) <= 0:  # noqa: PLR2004
            raise MeshError("the peer did not say how much arrived")
        return int(fields[0]) * 8 / float(fields[1]) / 1e9

    def stop(self) -> None:
        """End the server; one that is gone already is fine."""
        try:
            self.ask("stop").close()
        except OSError:
            return


def measure(link: str, peer: Peer, *, seconds: float, rtt_ms: float, gbps: float) -> list[Check]:
    """The three findings about the way to a peer; ``link`` names it. What could not be measured is not ok."""
    reach_hint = (
        f"Let {peer.address} port {peer.port}/tcp through, and look at the link and the routes of both nodes."
    )
    rtt_hint = "Look for a detour through a router or tunnel, and for a node that is starved of CPU."
    gbps_hint = "Look at the link's speed and errors (`ethtool`, `ip -s link`) and at what else uses it."

    def not_made(why: str, *, reachable: bool) -> list[Check]:
        state = check("fabric.tcp_reachable", link, reachable, why, "answers", hint=reach_hint)
        return [
            state,
            unmade("fabric.tcp_rtt", link, why, rtt_ms, unit="ms", hint=reach_hint),
            unmade("fabric.tcp_throughput", link, why, gbps, unit="Gb/s", hint=reach_hint),
        ]

    try:
        trip = peer.rtt_ms()
    except (OSError, MeshError) as why:
        return not_made(str(why), reachable=False)
    made = [
        check("fabric.tcp_reachable", link, True, "answers", "answers", hint=reach_hint),
        check("fabric.tcp_rtt", link, trip <= rtt_ms, round(trip, 3), rtt_ms, unit="ms", hint=rtt_hint),
    ]
    try:
        rate = peer.gbps(seconds)
    except (OSError, MeshError, ValueError) as why:
        return [*made, unmade("fabric.tcp_throughput", link, str(why), gbps, unit="Gb/s", hint=gbps_hint)]
    rated = check(
        "fabric.tcp_throughput", link, rate >= gbps, round(rate, 2), gbps, unit="Gb/s", hint=gbps_hint
    )
    return [*made, rated]


def peers_of(node: str, nodes: dict[str, str]) -> list[str]:
    """The other nodes, beginning after this one, so that not all nodes measure the same peer first."""
    names = sorted({*nodes, node})
    at = names.index(node)
    return names[at + 1 :] + names[:at]


def mesh(node: str, nodes: dict[str, str], reach: Callable[[str], list[Check]]) -> list[Check]:
    """The findings about all peers. Without a peer nothing was measured, and that is a failed one."""
    peers = peers_of(node, nodes)
    if node not in nodes or not peers:
        hint = "Name this node and its peers, each with its address, in rdma_fabric_nodes."
        why = "no peer to measure" if node in nodes else f"{node} is not a node of the fabric"
        return [unmade("fabric.tcp_peers", "transport: tcp (declared)", why, "at least one peer", hint=hint)]
    return [made for peer in peers for made in reach(peer)]


def main() -> None:
    """Do what ``state`` asks."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["listening", "measured", "stopped"], "required": True},
            "node": {"type": "str", "required": True},
            "nodes": {"type": "dict", "required": True},
            "port": {"type": "int", "required": True},
            "token": {"type": "str", "required": True, "no_log": True},
            "seconds": {"type": "float", "default": 1.0},
            "deadline_s": {"type": "float", "default": 60.0},
            "rtt_ms": {"type": "float", "default": 5.0},
            "gbps": {"type": "float", "default": 0.5},
        },
        supports_check_mode=True,
    )
    want = module.params
    node, nodes = want["node"], {name: str(address) for name, address in want["nodes"].items()}

    def reach(name: str) -> list[Check]:
        link = f"transport: tcp (declared), {node} -> {name}"
        peer = Peer(nodes[name], want["port"], want["token"])
        return measure(link, peer, seconds=want["seconds"], rtt_ms=want["rtt_ms"], gbps=want["gbps"])

    if want["state"] == "measured":
        module.exit_json(changed=False, checks=mesh(node, nodes, reach))
    if node not in nodes:  # measuring makes a finding of it; there is nothing to listen on
        module.exit_json(changed=False)
    if want["state"] == "stopped":
        Peer(nodes[node], want["port"], want["token"]).stop()
        module.exit_json(changed=False)
    try:
        server = listen(nodes[node], want["port"])
    except OSError as why:
        module.fail_json(
            msg=f"{node} cannot listen on {nodes[node]} port {want['port']}: {why}. "
            "Free the port or set rdma_fabric_tcp_port; the address must be the node's own."
        )
    background(lambda: serve(server, want["token"], want["deadline_s"]))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
