"""splitrail_kv_transport: what it makes of counters and of UCX's own words; the program over real sockets."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from splitrail.ansible.module_utils import splitrail_lines
from splitrail.ansible.modules import splitrail_kv_transport as kv

MIB = 1 << 20
PROGRAM = Path(__file__).parents[3] / "roles/kv_transport/files/kv_transfer.py"
# As UCX 1.23 wrote them on two nodes with soft-RoCE.
OVER_RC = [
    "[1795264536.69] [fab-1:733  :0]  ucp_worker.c:1997 UCX  INFO    x self cfg#0 rma(rc_verbs/rxe0:1)  "
    "amo_am(rc_verbs/rxe0:1)  am(rc_verbs/rxe0:1 rc_verbs/rxe1:1)  ka(ud_verbs/rxe0:1)",
]
OVER_TCP = [
    "[1795264536.69] [lab:7  :0]  ucp_worker.c:1997 UCX  INFO    x inter-node cfg#1 rma_am(tcp/host0)  "
    "am(tcp/host0)  ka(tcp/host0)",
]
WAY = {
    "node": "a",
    "peer": "b",
    "tls": "rc,self",
    "bytes": 8 * MIB,
    "devices": ["rxe0"],
    "mtu": 9000,
}


def counted(rdma: dict[str, dict[str, int]], net: int = 0) -> dict[str, Any]:
    return {"rdma": rdma, "net": {"rail0": net}}


def found(**change: Any) -> dict[str, Any]:
    """A transfer over soft-RoCE as it should be."""
    return {
        "state": "DONE",
        "seconds": 0.4,
        "wrong_kib": 0,
        "before": counted({"rxe0": {"rcvd_pkts": 100}, "rxe1": {"rcvd_pkts": 0}}),
        # Every packet carries 4096 bytes; the interface counts them too.
        "after": counted({"rxe0": {"rcvd_pkts": 2200}, "rxe1": {"rcvd_pkts": 0}}, net=9 * MIB),
        "tls": "rc,self",
        "peer_tls": "rc,self",
        "log": OVER_RC,
        **change,
    }


def adapter(rcv_words: int, net: int) -> dict[str, Any]:
    """A transfer over an adapter, which counts words of four bytes and keeps RDMA off the interface."""
    return {
        "before": counted({"rxe0": {"port_rcv_data": 1000}}),
        "after": counted({"rxe0": {"port_rcv_data": 1000 + rcv_words}}, net=net),
    }


def failed(result: dict[str, Any], way: dict[str, Any] | None = None) -> list[str]:
    checks = [
        *kv.made("rail0, a <- b", way or WAY, result),
        *kv.over_rdma("rail0, a <- b", way or WAY, result),
    ]
    assert len(checks) == 5
    return [check["name"].removeprefix("validate.") for check in checks if not check["ok"]]


def test_soft_roce_as_it_should_be() -> None:
    assert failed(found()) == []


def test_an_adapter_as_it_should_be() -> None:
    assert failed(found(**adapter(2 * MIB + 5000, 200_000))) == []


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"wrong_kib": 1}, ["data"]),
        ({"state": "ERR"}, ["transfer", "data", "rdma_bytes", "other_bytes", "no_tcp"]),
        ({"log": OVER_TCP}, ["no_tcp"]),
        ({"log": [*OVER_RC, *OVER_TCP]}, ["no_tcp"]),
        ({"log": []}, ["no_tcp"]),
        # The payload went over TCP: few packets on the device, all of it on the interface.
        (
            {"after": counted({"rxe0": {"rcvd_pkts": 110}}, net=9 * MIB)},
            ["rdma_bytes", "other_bytes"],
        ),
        # ... or over the other rail.
        (
            {"after": counted({"rxe0": {"rcvd_pkts": 110}, "rxe1": {"rcvd_pkts": 2100}})},
            ["rdma_bytes"],
        ),
        (adapter(10, 9 * MIB), ["rdma_bytes", "other_bytes"]),
        (adapter(2 * MIB, 3 * MIB), ["other_bytes"]),
        ({"after": counted({})}, ["rdma_bytes"]),
    ],
)
def test_what_is_wrong_is_found(change: dict[str, Any], names: list[str]) -> None:
    assert failed(found(**change)) == names


def test_the_cure_names_the_host_whose_ucx_tls_is_another() -> None:
    (transfer, _) = kv.made("rail0, a <- b", WAY, found(state="ERR", peer_tls="tcp"))
    assert transfer["hint"] == "Take what sets UCX_TLS to tcp on b away: the inventory says rc,self."


def test_transports_are_read_from_ucx_alone() -> None:
    assert kv.transports(OVER_RC) == {"rc_verbs", "ud_verbs"}
    assert kv.transports(OVER_TCP) == {"tcp"}
    assert kv.transports(["loaded from /opt/tcp/lib/libucp.so"]) == set()


@pytest.mark.parametrize(
    ("netdev", "mtu"), [(9000, 4096), (4200, 4096), (1500, 1024), (2200, 2048), (300, 256)]
)
def test_path_mtu(netdev: int, mtu: int) -> None:
    assert kv.rdma_mtu(netdev) == mtu


def test_the_ring() -> None:
    nodes = {"c": "3", "a": "1", "b": "2"}
    assert [kv.next_of(node, nodes) for node in "abc"] == ["b", "c", "a"]
    assert kv.next_of("a", {"a": "1"}) == ""
    assert kv.next_of("x", nodes) == ""


def test_each_rail_is_measured_and_all_of_them() -> None:
    rails = [{"rail": 1, "rdma_device": "mlx5_0"}, {"rail": 0, "rdma_device": "mlx5_9"}]
    assert kv.ends_of(rails) == {
        kv.ALL: ["mlx5_9", "mlx5_0"],
        "rail1": ["mlx5_0"],
        "rail0": ["mlx5_9"],
    }
    assert kv.ends_of(rails[:1]) == {kv.ALL: ["mlx5_0"]}


# The program, with a NIXL that copies.


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "splitrail_lines", splitrail_lines)
    monkeypatch.delenv("UCX_LOG_LEVEL", raising=False)
    monkeypatch.setenv("UCX_TLS", "tcp,self")
    spec = importlib.util.spec_from_file_location("kv_transfer", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Agent:
    """What the program uses of NIXL's agent; a read copies within this process."""

    def __init__(self, name: str, _config: Any) -> None:
        if "broken" in name:
            raise OSError("no usable transports")
        self.name = name

    def register_memory(self, regions: list[Any], _kind: str) -> list[Any]:
        return regions

    def deregister_memory(self, _regions: list[Any]) -> None:
        return

    def get_agent_metadata(self) -> bytes:
        return self.name.encode()

    def add_remote_agent(self, metadata: bytes) -> bytes:
        return metadata

    def get_xfer_descs(self, regions: list[Any], _kind: str) -> Any:
        return regions[0]

    def initialize_xfer(self, _operation: str, here: Any, there: Any, _peer: str) -> Any:
        return here, there

    def transfer(self, request: Any) -> str:
        import ctypes  # noqa: PLC0415

        (to, size, _), (source, _, _) = request
        ctypes.memmove(to, source, size)
        return "DONE"


class Api:
    nixl_agent = Agent

    @staticmethod
    def nixl_agent_config(**_options: Any) -> None:
        return


def serve(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, port: int, ends: dict[str, str]
) -> threading.Thread:
    monkeypatch.setattr(program, "nixl_api", Api)
    (folder / "ucx.log").write_text("")
    settings = {
        "node": "a",
        "address": "127.0.0.1",
        "port": port,
        "token": "t",
        "bytes": 4096,
        "memory": "DRAM",
        "ends": ends,
        "deadline_s": 30,
    }
    node = program.Node(settings, folder / "ucx.log")
    thread = threading.Thread(target=node.serve)
    thread.start()
    return thread


@pytest.fixture
def port() -> int:
    import socket  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    return number


def call(port: int, **asked: Any) -> dict[str, Any]:
    """Ask until the program listens."""
    for _ in range(100):
        try:
            return splitrail_lines.ask("127.0.0.1", port, {"token": "t", **asked}, 10)
        except ConnectionRefusedError:
            threading.Event().wait(0.05)
    raise AssertionError("it never listened")


def test_the_program_reads_and_compares(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int
) -> None:
    thread = serve(program, monkeypatch, tmp_path, port, {"all rails": "", "broken": "x:1"})
    assert call(port, ask="hello") == {"tls": "tcp,self"}
    read = call(port, ask="read", end="all rails", address="127.0.0.1", timeout_s=5)
    assert (read["state"], read["wrong_kib"], read["peer_tls"]) == ("DONE", 0, "tcp,self")
    with pytest.raises(RuntimeError, match=r"no NIXL agent could be made.*no usable transports"):
        call(port, ask="read", end="broken", address="127.0.0.1", timeout_s=5)
    with pytest.raises(RuntimeError, match="hung up"):
        call(port, ask="hello", token="other")  # noqa: S106
    call(port, ask="stop")
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_the_program_sees_what_was_not_copied(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int
) -> None:
    monkeypatch.setattr(Agent, "transfer", lambda *_: "DONE")
    thread = serve(program, monkeypatch, tmp_path, port, {"all rails": ""})
    read = call(port, ask="read", end="all rails", address="127.0.0.1", timeout_s=5)
    assert read["wrong_kib"] == 4  # all of it
    call(port, ask="stop")
    thread.join(timeout=10)
