"""Read a peer's memory through this image's own NIXL and UCX, and say what was seen of it.

Runs inside the serving image, as the engines do: same devices, limits, network and environment. One process
a node offers its own memory and, when asked, reads that of a peer; both ends speak one line of JSON over TCP,
which carries descriptors only. The data go as UCX decides, which is what is to be found out.

Takes the path of its settings (a JSON file); runs until it is told to stop or its time is over.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hmac
import importlib
import json
import os
import random
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

# Installed beside this file.
from splitrail_lines import LONGEST_LINE, ask

Json = dict[str, Any]

# It makes UCX name the transports of each kind of connection, and changes nothing of what it chooses.
os.environ.update({"UCX_LOG_LEVEL": "info"})

CONNECT_S = 10.0
BLOCK = 1024


def nixl_api() -> Any:
    """NIXL's Python interface; AMD's build of it has another name."""
    for name in ("nixl._api", "rixl._api"):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise RuntimeError("the image has neither nixl nor rixl")


def pattern(seed: str, size: int) -> bytes:
    """What a node's memory holds: no other node's, no other run's, and nothing that was there before."""
    return random.Random(seed).randbytes(size)  # noqa: S311  # not a secret


class HostMemory:
    """Memory of the node."""

    kind = "DRAM"

    def __init__(self, content: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(content, len(content))
        self.region = (ctypes.addressof(self._buffer), len(content), 0)

    def content(self) -> bytes:
        return self._buffer.raw


class GpuMemory:
    """Memory of the node's first GPU."""

    kind = "VRAM"

    def __init__(self, content: bytes) -> None:
        torch = importlib.import_module("torch")
        self._tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8).to("cuda:0")
        torch.cuda.synchronize()
        self.region = (self._tensor.data_ptr(), len(content), 0)

    def content(self) -> bytes:
        return bytes(self._tensor.cpu().numpy())


class End:
    """One agent of this node, which may use the NICs of one rail, or of all."""

    def __init__(self, api: Any, settings: Json, label: str, devices: str) -> None:
        if devices:
            os.environ["UCX_NET_DEVICES"] = devices  # UCX reads it when the agent is made
        self.memory_type = GpuMemory if settings["memory"] == "VRAM" else HostMemory
        self.size: int = settings["bytes"]
        self.seed = f"{settings['token']} {settings['node']} {label}"
        self.memory = self.memory_type(pattern(self.seed, self.size))
        self.agent = api.nixl_agent(f"{settings['node']}-{label}", api.nixl_agent_config(backends=["UCX"]))
        self.registered = self.agent.register_memory([(*self.memory.region, "")], self.memory.kind)

    def offer(self) -> Json:
        """What a peer needs to read this memory."""
        return {
            "metadata": base64.b64encode(self.agent.get_agent_metadata()).decode(),
            "region": self.memory.region,
            "kind": self.memory.kind,
            "seed": self.seed,
        }

    def read(self, offer: Json, timeout_s: float) -> Json:
        """Read what a peer offers; ``state`` is DONE, or what went wrong."""
        into = self.memory_type(bytes(self.size))
        registered = self.agent.register_memory([(*into.region, "")], into.kind)
        found: Json = {"before": counters()}
        started = time.monotonic()
        try:
            peer = self.agent.add_remote_agent(base64.b64decode(offer["metadata"]))
            peer = peer.decode() if isinstance(peer, bytes) else peer
            here = self.agent.get_xfer_descs([into.region], into.kind)
            there = self.agent.get_xfer_descs([tuple(offer["region"])], offer["kind"])
            transfer = self.agent.initialize_xfer("READ", here, there, peer)
            state = self.agent.transfer(transfer)
            while state == "PROC" and time.monotonic() - started < timeout_s:
                time.sleep(0.005)  # the agent's own thread moves the data
                state = self.agent.check_xfer_state(transfer)
            found["state"] = state if state != "PROC" else f"not done after {timeout_s:g} s"
        except Exception as error:  # NIXL's errors have no base of their own
            found["state"] = f"{type(error).__name__}: {error}"
        found["seconds"] = round(time.monotonic() - started, 3)
        found["after"] = counters()
        expected, content = pattern(offer["seed"], self.size), into.content()
        blocks = range(0, self.size, BLOCK)
        found["wrong_kib"] = sum(content[at : at + BLOCK] != expected[at : at + BLOCK] for at in blocks)
        self.agent.deregister_memory(registered)
        return found


def counters() -> Json:
    """What this node has received so far, by RDMA device and by network interface."""
    rdma: Json = {}
    for device in Path("/sys/class/infiniband").glob("*"):
        port = device / "ports/1"
        rdma[device.name] = {
            name: int(file.read_text())
            for name, file in {
                "port_rcv_data": port / "counters/port_rcv_data",
                "rcvd_pkts": port / "hw_counters/rcvd_pkts",
            }.items()
            if file.exists()
        }
    net = {
        file.parts[4]: int(file.read_text())
        for file in Path("/sys/class/net").glob("*/statistics/rx_bytes")
        if file.parts[4] != "lo"
    }
    return {"rdma": rdma, "net": net}


def flush() -> None:
    """Write what the libraries' own standard output, of C, still holds; it is buffered where it is a file."""
    ctypes.CDLL(None).fflush(None)


class Node:
    """This node's ends, and the answers to what it is asked over TCP."""

    def __init__(self, settings: Json, log: Path) -> None:
        self.settings, self.log = settings, log
        # One at a time: they take their devices from the process's environment.
        given = os.environ.get("UCX_NET_DEVICES", "")
        api = nixl_api()
        self.ends: dict[str, End] = {}
        self.broken: dict[str, str] = {}
        for label, devices in settings["ends"].items():
            try:
                self.ends[label] = End(api, settings, label, devices or given)
            except Exception as error:  # NIXL's errors have no base of their own
                self.broken[label] = f"no NIXL agent could be made for it: {type(error).__name__}: {error}"
        self.stopped = threading.Event()

    def answer(self, asked: Json) -> Json:
        what = asked["ask"]
        if what == "stop":
            self.stopped.set()
            return {}
        if what == "hello":
            return {"tls": os.environ.get("UCX_TLS", "")}
        if asked["end"] in self.broken:
            raise RuntimeError(f"{asked['end']}: {self.broken[asked['end']]}")
        end = self.ends[asked["end"]]
        if what == "offer":
            return {**end.offer(), "tls": os.environ.get("UCX_TLS", "")}
        return self.read(end, asked)

    def read(self, end: End, asked: Json) -> Json:
        """Read from the peer named; the log is what UCX wrote of the connections of this end.

        UCX names the transports of a kind of connection once, which may have been when the peer came first.
        """
        given = {"token": self.settings["token"], "ask": "offer", "end": asked["end"]}
        offer = ask(asked["address"], self.settings["port"], given, CONNECT_S)
        found = end.read(offer, asked["timeout_s"])
        flush()
        own = f" {self.settings['node']}-{asked['end']} "
        lines = self.log.read_text(errors="replace").splitlines()
        # With itself an agent is connected as well, which says nothing of the way to another.
        said = [line for line in lines if "cfg#" in line and own in line and " self cfg#" not in line]
        return {**found, "tls": os.environ.get("UCX_TLS", ""), "peer_tls": offer["tls"], "log": said}

    def serve(self) -> None:
        """Answer until told to stop, or the time is over."""
        until = time.monotonic() + self.settings["deadline_s"]
        with socket.create_server((self.settings["address"], self.settings["port"]), backlog=64) as server:
            server.settimeout(0.2)
            while not self.stopped.is_set() and time.monotonic() < until:
                with contextlib.suppress(TimeoutError):
                    link, _ = server.accept()
                    threading.Thread(target=self._talk, args=(link,), daemon=True).start()

    def _talk(self, link: socket.socket) -> None:
        with link, link.makefile("rwb") as stream, contextlib.suppress(OSError):
            link.settimeout(CONNECT_S)
            try:
                asked = json.loads(stream.readline(LONGEST_LINE))
                if not hmac.compare_digest(str(asked.get("token", "")), self.settings["token"]):
                    return
                answer = self.answer(asked)
            except Exception as error:  # whoever asked is told, and the node goes on
                answer = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(answer).encode() + b"\n")
            stream.flush()


def main() -> None:
    """Offer and read until told to stop."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    log = Path(sys.argv[1]).parent / "ucx.log"
    # UCX and NIXL write to the standard streams of the process.
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    Node(settings, log).serve()
    # Agents' threads and exit hooks have nothing left to say.
    os._exit(0)


if __name__ == "__main__":
    main()
